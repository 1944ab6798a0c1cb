"""One process writes a run folder, and clears away what a dead one has left there."""

import os
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, Thread

import pytest

from smalti.cli import main
from smalti.core.errors import DataError, LockError, OutputError, SmaltiError
from smalti.runs.folder import create, read_config, writing
from tests.small_runs import DEMO_FLAGS, TOKENIZER_FLAGS, flat_pictures

NUMBER = "0123456789abcdef" * 2


@dataclass(frozen=True)
class Config:
    """Any configuration."""

    out: str = ""


def test_the_second_writer_is_refused_and_told_who_is_first(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    message = rf"run is being written; by process {os.getpid()} on {os.uname().nodename}; wait for it, or use another"
    with writing(out):
        with pytest.raises(LockError, match=message) as raised, writing(out):
            pass
        assert raised.value.exit_code == 7
    with writing(out):
        pass
    assert os.listdir(out) == []


def test_the_lock_is_gone_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), writing(str(tmp_path)):
        raise ValueError("stop")
    with writing(str(tmp_path)):
        assert os.listdir(tmp_path) == [".lock"]


def test_what_a_dead_run_left_is_removed_and_what_others_write_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """J05."""
    (tmp_path / "checkpoints" / "step-00000010").mkdir(parents=True)
    (tmp_path / "checkpoints" / f".step-00000020.{NUMBER}").mkdir()
    (tmp_path / "checkpoints" / f".step-00000020.{NUMBER}" / "model.safetensors").write_bytes(b"half of it")
    for name in (f".config.json.{NUMBER}", f".report.html.{NUMBER}", "config.json"):
        (tmp_path / name).touch()
    (tmp_path / ".lock").write_text("999999999 on elsewhere\n")
    with writing(str(tmp_path)):
        assert sorted(os.listdir(tmp_path)) == [".lock", f".report.html.{NUMBER}", "checkpoints", "config.json"]
        assert os.listdir(tmp_path / "checkpoints") == ["step-00000010"]
    said = capsys.readouterr().err
    assert said == (
        f"{tmp_path}: removed what a run that was killed left unfinished: "
        f".config.json.{NUMBER}, .step-00000020.{NUMBER}\n"
    )


def test_what_a_living_run_is_writing_is_not_touched(tmp_path: Path) -> None:
    with writing(str(tmp_path)):
        unfinished = tmp_path / "checkpoints" / f".step-00000020.{NUMBER}"
        unfinished.mkdir(parents=True)
        with pytest.raises(LockError), writing(str(tmp_path)):
            pass
        assert unfinished.exists()


def test_a_run_that_was_killed_at_its_very_start_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / f".config.json.{NUMBER}").write_text("{")
    with writing(str(tmp_path)):
        create(str(tmp_path), Config())
    assert os.listdir(tmp_path) == ["config.json"]
    assert read_config(str(tmp_path), Config) == Config()


def test_of_runs_that_start_together_one_wins(tmp_path: Path) -> None:
    """J04."""
    for attempt in range(20):
        out = str(tmp_path / str(attempt))
        start, outcomes = Barrier(2), list[str]()

        def run(out: str = out, start: Barrier = start, outcomes: list[str] = outcomes) -> None:
            start.wait()
            try:
                with writing(out):
                    create(out, Config(out))
                    outcomes.append("won")
            except SmaltiError as error:
                outcomes.append(type(error).__name__)

        threads = [Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) in (["LockError", "won"], ["UsageError", "won"])
        assert os.listdir(out) == ["config.json"]


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    with pytest.raises(OutputError, match=r"cannot write into .*/file; File exists"), writing(str(path)):
        pass
    with pytest.raises(OutputError, match=r"cannot write into .*/file; File exists"):
        create(str(path), Config())
    with pytest.raises(OutputError, match=r"cannot write into .*/below"), writing(str(path / "below")):
        pass
    assert path.read_text() == "content"


def test_a_run_in_a_folder_that_is_being_written_ends_with_7(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """J04."""
    photos, out = flat_pictures(tmp_path / "photos"), tmp_path / "run"
    with writing(str(out)):
        create(str(out), Config())
        before = (out / "config.json").read_bytes()
        assert main(["train-tokenizer", "nano", "--data", str(photos), "--out", str(out), *TOKENIZER_FLAGS]) == 7
        assert (out / "config.json").read_bytes() == before
    assert f"error: {out} is being written; by process {os.getpid()} on " in capsys.readouterr().err


def test_the_folder_of_a_demo_that_is_running_is_not_moved_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out, codes = flat_pictures(tmp_path / "photos"), tmp_path / "demo", list[int]()
    command = ["demo", "--out", str(out), "--data", str(photos), *DEMO_FLAGS]

    def meanwhile(*_: object) -> None:
        codes.append(main(command))
        raise DataError("that is enough")

    monkeypatch.setattr("smalti.runs.demo.choose_compute", meanwhile)
    assert main(command) == 3
    assert codes == [7]
    assert f"error: {out} is being written; by process {os.getpid()} on " in capsys.readouterr().err
    assert not (tmp_path / "demo.1").exists()


def test_a_lock_that_is_another_name_of_a_file_leaves_that_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    (tmp_path / "run").mkdir()
    os.link(tmp_path / "precious", tmp_path / "run" / ".lock")
    with writing(str(tmp_path / "run")):
        assert (tmp_path / "run" / ".lock").read_text() != "content"
        with pytest.raises(LockError), writing(str(tmp_path / "run")):
            pass
    assert (tmp_path / "precious").read_text() == "content"


@pytest.mark.parametrize("name", ["checkpoints", "best", "captures"])
def test_a_folder_of_a_run_that_is_a_link_is_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere" / "step-00000001").mkdir(parents=True)
    (tmp_path / "elsewhere" / f".step-00000002.{NUMBER}").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(OutputError, match=rf"{name} is a link; a run writes and removes files there"),
        writing(str(tmp_path / "run")),
    ):
        pass
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2
