"""`smalti report --watch`: written again while there is more to show, whole at any time, and at rest in the end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smalti.cli import main
from smalti.core.compute import choose_compute
from smalti.core.errors import CheckpointError, UsageError
from smalti.core.folder_lock import LOCK, is_written, writer_lock
from smalti.report.page import page
from smalti.runs import report
from smalti.runs.sections import pretrain_sections

RELOADS = '<meta http-equiv="refresh"'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a tokenizer run at its beginning; pages may be written one after another."""
    monkeypatch.setattr(report, "_SHARE", 0)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"smalti": "0.1.0", "config": {"kind": "TrainTokenizer"}}')
    return folder


class Training:
    """A run that logs a line between two looks, and ends after some."""

    def __init__(self, folder: Path, looks: int) -> None:
        self.folder, self.looks, self.slept = folder, looks, 0

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        if self.slept % 2:  # every other time there is something new
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(f'{{"step": {self.slept}}}\n')
        if self.slept == self.looks:
            (self.folder / LOCK).unlink()


def test_it_is_written_when_there_is_more_and_the_last_one_rests(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, written = Training(run, looks=4), list[int]()
    (run / LOCK).write_text(f"{os.getpid()} on {os.uname().nodename}\n")
    monkeypatch.setattr("smalti.runs.report.time.sleep", training.sleep)
    report.watch((str(run),), run / "report.html", written.append)
    assert written == [10, 10, 10, 0], "at the beginning, after steps 1 and 3, and at the end"


def test_ctrl_c_ends_it_and_the_page_no_longer_reloads(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = run / "report.html"

    def interrupt(seconds: float) -> None:
        assert RELOADS in target.read_text()
        raise KeyboardInterrupt

    (run / LOCK).write_text(f"{os.getpid()} on {os.uname().nodename}\n")
    monkeypatch.setattr("smalti.runs.report.time.sleep", interrupt)

    def write(reload: int) -> None:
        target.write_text(page("t", "s", [], {}, reload))

    report.watch((str(run),), target, write)
    assert target.read_text() == page("t", "s", [], {})


def test_a_checkpoint_that_is_replaced_meanwhile_is_waited_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, tries = Training(run, looks=2), list[int]()
    (run / LOCK).write_text(f"{os.getpid()} on {os.uname().nodename}\n")
    monkeypatch.setattr("smalti.runs.report.time.sleep", training.sleep)

    def write(reload: int) -> None:
        tries.append(reload)
        if len(tries) == 1:
            raise CheckpointError("it is gone")

    report.watch((str(run),), run / "report.html", write)
    assert tries == [10, 10, 0]


def test_what_is_no_run_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises((UsageError, CheckpointError)):
        report.watch((str(tmp_path / "nothing"),), tmp_path / "report.html", lambda reload: None)


def test_whether_a_folder_is_written_is_seen_without_touching_its_lock(tmp_path: Path) -> None:
    assert not is_written(tmp_path)
    with writer_lock(tmp_path):
        assert is_written(tmp_path)
    assert not is_written(tmp_path)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / LOCK).write_text(f"{gone.stdout.strip()} on {os.uname().nodename}\n")
    assert not is_written(tmp_path), "its process was killed"
    (tmp_path / LOCK).write_text("17 on another-machine\n")
    assert is_written(tmp_path)


def test_a_run_without_a_checkpoint_has_its_curves(runs: Path, tmp_path: Path) -> None:
    for name, title in (("tokenizer", "Stage one"), ("beit", "Stage two")):
        begun = tmp_path / name
        shutil.copytree(runs / name, begun, ignore=shutil.ignore_patterns("checkpoints", "result.json"))
        assert report.main(report.Report((str(begun),), watch=True)) == {"report": str(begun / "report.html")}
        text = (begun / "report.html").read_text()
        assert title in text
        assert "Not finished yet" in text
        assert "2 of 2" in text
        assert RELOADS not in text


def test_a_report_is_written_without_pictures_where_images_or_tokenizer_are_gone(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the run goes on, what is missing of a checkpoint is waited for."""
    run, out = tmp_path / "beit", tmp_path / "page.html"
    shutil.copytree(runs / "beit", run)
    about = json.loads((run / "config.json").read_text())
    for part, gone in (("data", {"path": str(tmp_path / "gone")}), ("tokenizer", str(tmp_path / "gone"))):
        config = about["config"] | {part: gone if part == "tokenizer" else about["config"]["data"] | gone}
        (run / "config.json").write_text(json.dumps(about | {"config": config}))
        assert main(["report", str(run), "--out", str(out)]) == 0
        assert f"no pictures of {run}: " in " ".join(capsys.readouterr().err.split())
        assert "Stage two" in out.read_text()
        assert "dreamt back" not in out.read_text()
    (run / LOCK).write_text(f"{os.getpid()} on {os.uname().nodename}\n")
    with pytest.raises(CheckpointError, match="gone"):
        pretrain_sections(str(run), choose_compute("cpu", "fp32"))
