"""Disks that fill up, folders that go away or cannot be written: cases C of the list, as a run meets them."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from smalti.cli import main
from smalti.core import files, stored
from smalti.core.errors import LockError, OutputError
from smalti.core.files import append, require_place, write_bytes, write_folder, write_json
from smalti.core.log import Log
from smalti.data.load import Data
from smalti.runs.folder import RunFolder, writing
from smalti.training.trainer import Trainer
from tests.small_runs import flat_pictures, metrics, pretrain, train_tokenizer, weights

STEPS = 6


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flat_pictures(tmp_path_factory.mktemp("output") / "photos", 16)


@pytest.fixture(scope="module")
def whole(photos: Path) -> Path:
    """A run that nothing happens to."""
    assert train_tokenizer(photos, photos.parent / "whole", STEPS, "--plan.save-every", "2") == 0
    return photos.parent / "whole"


@contextmanager
def before_step(step: int, happens: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let something happen, once, when `step` steps are done."""
    train_step, to_come = Trainer.train_step, [happens]

    def watched(trainer: Trainer, *arguments: Any, **named: Any) -> Any:
        if trainer.step == step and to_come:
            to_come.pop()()
        return train_step(trainer, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", watched)
        yield


def remove(run: Path) -> None:
    """Take a run folder away between two writes: what the thread of the checkpoints has begun is ended first."""
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint of step"):
            thread.join()
    shutil.rmtree(run)


def failing(name: str, code: int, times: int, only: str = "") -> Callable[..., Any]:
    """`os.NAME` that fails so many times, where its first argument ends with `only`."""
    real, left = getattr(os, name), [None] * times

    def fails(place: Any, *arguments: Any, **named: Any) -> Any:
        if left and (not only or str(place).endswith(only)):
            left.pop()
            raise OSError(code, os.strerror(code))
        return real(place, *arguments, **named)

    return fails


# C03: metrics


def test_c03_where_metrics_cannot_be_written_there_is_one_warning_and_a_gap_that_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    log.record(step=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing("write", errno.ENOSPC, 2))
        log.record(step=2)
        log.record(step=3)
    log.record(step=4)
    log.record(step=5)
    monkeypatch.setattr(os, "write", failing("write", errno.EIO, 1))
    log.record(step=6)
    log.record(step=7)
    lines = RunFolder(tmp_path).read_metrics()
    assert lines == [{"step": 1}, {"step": 4, "lines_lost": 2}, {"step": 5}, {"step": 7, "lines_lost": 1}]
    assert capsys.readouterr().err.splitlines() == [
        f"cannot write {tmp_path}/metrics.jsonl; No space left on device; the run goes on, with a gap in that file"
    ]


def test_c03_a_line_that_was_written_halfway_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, path, room = os.write, tmp_path / "metrics.jsonl", [3, 0]
    append(path, b"first\n")

    def half(handle: int, data: memoryview) -> int:
        if not (left := room.pop(0)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[:left])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(OutputError, match=r"metrics\.jsonl; No space left"):
            append(path, b"second\n")
    assert path.read_bytes() == b"first\n"
    append(path, b"third\n")
    assert path.read_bytes() == b"first\nthird\n"


def test_c03_a_run_whose_metrics_cannot_be_written_ends_in_the_same_weights(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(os, "open", failing("open", errno.ENOSPC, 3, only="metrics.jsonl"))
    assert train_tokenizer(photos, run, STEPS, "--plan.save-every", "2") == 0
    assert weights(run) == weights(whole)
    first, *others = metrics(run)
    assert [{name: value for name, value in first.items() if name != "lines_lost"}, *others] == metrics(whole)[3:]
    assert first["lines_lost"] == 3


# C04: the disk is full, and then it is not


def test_c04_a_run_that_found_the_disk_full_goes_on_exactly_when_there_is_space(
    photos: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"

    def no_space(folder: Path, needed: int) -> None:
        if "checkpoints" in str(folder) and any(folder.iterdir()):
            raise OSError(errno.ENOSPC, "264.0 MB are needed, and 3.0 MB are free")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_require_space", no_space)
        assert train_tokenizer(photos, run, STEPS, "--plan.save-every", "2") == 6
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (f"error: cannot write {run}/checkpoints/step-00000004; 264.0 MB are needed, and 3.0 MB are free")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert main(["train-tokenizer", "--resume", str(run)]) == 0
    assert weights(run) == weights(whole)
    assert metrics(run) == metrics(whole)


# C07: places that cannot be written, found before anything is done


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at images or builds a network has lost."""

    def lost(*_: Any, **__: Any) -> None:
        raise AssertionError("the place should have been looked at first")

    for name in ("open", "load"):
        monkeypatch.setattr(Data, name, lost)
    for place in (
        "smalti.runs.prepare.Data.reading",
        "smalti.runs.split.open_with_notes",
        "smalti.runs.tokenize.load_tokenizer",
        "smalti.runs.pretrain.target_tokenizer",
        "smalti.runs.import_model.read_dalle",
        "smalti.runs.embed.network_of",
        "smalti.runs.predict.read_kind",
        "smalti.runs.search.open_described",
        "smalti.runs.model_pictures.read_kind",
        "smalti.runs.report.read_kind",
        "smalti.runs.masks.look",
        "smalti.runs.demo.choose_compute",
    ):
        monkeypatch.setattr(place, lost)


def writers(out: Path) -> list[list[str]]:
    """A command of every verb that writes, into `out`."""
    there, page = str(out), f"{out}/page.html"
    return [
        ["train-tokenizer", "nano", "--data", "photos", "--out", there],
        ["pretrain", "nano", "--data", "photos", "--tokenizer", "t", "--out", there],
        ["demo", "--out", there],
        ["prepare", "photos", "--out", there],
        ["split", "photos", "--out", there],
        ["tokenize", "photos", "--tokenizer", "t", "--out", there],
        ["import", "encoder.pkl", "decoder.pkl", "--out", there],
        ["embed", "run", "photos", "--out", f"{out}/features.npy"],
        ["predict", "run", "photos", "--out", f"{out}/predictions.csv"],
        ["search", "features.npy", "a.png", "--out", page],
        ["show", "run", "a.png", "--out", page],
        ["report", "run", "--out", page],
        ["masks", "--out", page],
    ]


def verbs(arguments: list[str]) -> str:
    return arguments[0]


@pytest.mark.parametrize("command", writers(Path("OUT")), ids=verbs)
def test_c07_a_file_above_the_place_to_write_is_found_first(
    command: list[str], nothing_is_read: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    out = [part.replace("OUT", f"{tmp_path}/file/out") for part in command]
    assert main(out) == 6
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: cannot write {tmp_path}/file/out") or line.startswith(
        f"error: cannot write into {tmp_path}/file/out; Not a directory"
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", writers(Path("OUT")), ids=verbs)
def test_c07_a_folder_that_is_not_ours_to_write_is_found_first(
    command: list[str],
    nothing_is_read: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As somebody who is not root, whom no mode stops."""

    def denied(place: Any, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))

    monkeypatch.setattr(os, "access", lambda place, mode: False)
    monkeypatch.setattr(os, "mkdir", denied)
    assert main([part.replace("OUT", f"{tmp_path}/out") for part in command]) == 6
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot write into {tmp_path}/out; Permission denied" in line or (
        f"cannot write {tmp_path}/out" in line and line.endswith(f"; {tmp_path} is not yours to write")
    )
    assert os.listdir(tmp_path) == []


def test_c07_what_is_missing_above_the_place_to_write_is_made_when_it_is_needed(tmp_path: Path) -> None:
    require_place(tmp_path / "a" / "b" / "c.html")
    assert os.listdir(tmp_path) == []
    with writing(str(tmp_path / "a" / "b")):
        assert (tmp_path / "a" / "b").is_dir()


# C08: limits by their names


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (errno.EDQUOT, "Disk quota exceeded"),
        (errno.EMFILE, "Too many open files"),
        (errno.EFBIG, "File too large"),
        (errno.EROFS, "Read-only file system"),
    ],
)
def test_c08_a_limit_is_named_and_nothing_is_left(
    code: int, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for write in (lambda path: write_bytes(path, b"new"), lambda path: write_folder(path, {"a": b"new"})):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", failing("write", code, 1))
            with pytest.raises(OutputError, match=f"cannot write {tmp_path}/it; {cause}") as raised:
                write(tmp_path / "it")
        assert raised.value.exit_code == 6
        assert os.listdir(tmp_path) == []


# C09: the run folder goes away


def test_c09_a_run_whose_folder_is_removed_ends_with_one_line_and_can_be_begun_again(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, flags = tmp_path / "run", ("--plan.save-every", "2")
    with before_step(3, lambda: remove(run), monkeypatch):
        assert train_tokenizer(photos, run, STEPS, *flags) == 6
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {run} was removed while the run went on; a run needs its folder, and its checkpoints are gone with"
        " it; begin it again"
    )
    assert not run.exists()
    assert train_tokenizer(photos, run, STEPS, *flags) == 0
    assert weights(run) == weights(whole)


def test_c09_a_folder_that_another_run_has_taken_is_left_to_it(tmp_path: Path) -> None:
    with writing(str(tmp_path)):
        write_json(tmp_path / "config.json", {})
        folder = RunFolder(tmp_path)
        folder.require_ours()
        (tmp_path / ".lock").unlink()
        (tmp_path / ".lock").write_text("7 on elsewhere\n")
        with pytest.raises(LockError, match=r"has been taken over; by process 7 on elsewhere; two runs need two"):
            folder.require_ours()
    assert (tmp_path / ".lock").read_text() == "7 on elsewhere\n"


# C10 to C15


def test_c10_lines_are_added_to_ordinary_files_only(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    reasons = {"link": "Too many levels", "pipe": "No such device", "folder": "Is a directory", "/dev/null": "ordinary"}
    for name, cause in reasons.items():
        with pytest.raises(OutputError, match=rf"cannot write .*{name}; .*{cause}"):
            append(tmp_path / name, b"line\n")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OutputError, match="what is there is no ordinary file"):
        append(tmp_path / "pipe", b"line\n")
    os.close(reader)
    assert (tmp_path / "precious").read_text() == "content"


def test_c11_nothing_is_ever_renamed_from_another_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no rename can fail because the other folder is on another disk (EXDEV)."""
    renamed = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def rename(source: Any, target: Any, **named: Any) -> None:
            renamed.append((Path(source).parent, Path(target).parent))
            real(source, target, **named)

        monkeypatch.setattr(os, name, rename)

    watch("rename")
    watch("replace")
    assert train_tokenizer(photos, tmp_path / "tokenizer", 2, "--plan.save-every", "1") == 0
    assert pretrain(photos, tmp_path / "tokenizer", tmp_path / "run", 1, "--accept-tokenizer") == 0
    assert len(renamed) >= 10
    assert all(source == target for source, target in renamed)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("operation", ["write", "fsync"])
def test_c12_what_a_network_file_system_says_for_a_moment_is_waited_for(
    code: int, operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for write in (
        lambda: write_bytes(tmp_path / "file", b"new"),
        lambda: write_folder(tmp_path / "folder", {"a": b"new"}),
        lambda: write_folder(tmp_path / "folder", {"a": b"newer"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, operation, failing(operation, code, 3))
            write()
    assert waited == 3 * [0.1, 0.3, 0.9]
    assert (tmp_path / "file").read_bytes() == b"new"
    assert stored.read_folder(tmp_path / "folder") == {"a": b"newer"}
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_c12_what_does_not_pass_is_an_error_after_three_more_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing("write", errno.ESTALE, 9))
        with pytest.raises(OutputError, match=f"cannot write {tmp_path}/file; Stale file handle"):
            write_bytes(tmp_path / "file", b"new")
    assert waited == [0.1, 0.3, 0.9]
    monkeypatch.setattr(os, "write", failing("write", errno.EIO, 1))
    with pytest.raises(OutputError, match="Input/output error"):
        write_bytes(tmp_path / "file", b"new")
    assert len(waited) == 3, "an I/O error does not pass"
    assert os.listdir(tmp_path) == []


def test_c13_a_file_that_is_replaced_hands_its_mode_on(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    (tmp_path / "a").chmod(0o640)
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    before = os.umask(0o022)
    try:
        append(tmp_path / "b", b"line\n")
    finally:
        os.umask(before)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o644


def test_c14_a_clock_that_jumps_while_a_run_goes_on_changes_nothing(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, day = tmp_path / "run", 86_400.0

    def jump() -> None:
        monkeypatch.setattr("time.time", lambda: 1e9 - day)
        for path in (run / "checkpoints").iterdir():
            os.utime(path, (4e9, 4e9))

    with before_step(3, jump, monkeypatch):
        assert train_tokenizer(photos, run, STEPS, "--plan.save-every", "2") == 0
    assert weights(run) == weights(whole)
    assert metrics(run) == metrics(whole)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize("command", writers(Path("OUT")), ids=verbs)
def test_c15_a_path_that_is_too_long_leaves_nothing(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One name of 300 bytes, and 4100 bytes in all."""
    for out in (f"{tmp_path}/{'n' * 300}", f"{tmp_path}/" + "/".join(["d" * 200] * 21)):
        code = main([part.replace("OUT", out) for part in command])
        line = capsys.readouterr().err.splitlines()[-1]
        assert (code, "File name too long" in line) == (6, True), line
        assert os.listdir(tmp_path) == []
