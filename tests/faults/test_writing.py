"""Whatever operation of a checkpoint write fails, and however: the older checkpoint or the new one is read."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest

from smalti.core import files
from smalti.core.errors import OutputError
from smalti.core.files import new_folder, remove_folder, remove_leftovers, sha256, write_bytes, write_folder
from smalti.training import checkpoint
from tests.faults.disk import LOSSES, Crashed, Disk, Fault
from tests.faults.trial import WRITES_ONLY, Trial, save, value_of

FAULTS: tuple[Fault, ...] = get_args(Fault)
ONE_MORE = Trial(((5, 1.0), (10, 2.0)), (20, 3.0))
THE_FIRST = Trial((), (20, 3.0))
AGAIN = Trial(((20, 3.0),), (20, 4.0))
"""As a tokenizer that is fitted does when its run is resumed."""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is prepared, and the run that goes on, need not reach the real disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("trial", [ONE_MORE, THE_FIRST, AGAIN])
def test_a_checkpoint_survives_a_fault_at_every_operation(trial: Trial, fault: Fault, tmp_path: Path) -> None:
    """C01, C05, C06. Files, their folder and the folder it is in are made, written, flushed, renamed: 14 at least."""
    assert trial.run_all(fault, tmp_path) >= (4 if fault in WRITES_ONLY else 14)


def test_an_export_that_is_killed_anywhere_is_whole_or_not_there(tmp_path: Path) -> None:
    """A15, and power cuts: at every operation of a folder that gets its name last."""
    content = {"model.safetensors": b"weights" * 100, "README.md": b"card"}

    def operations(folder: Path, fault: Fault | None, at: int = 0) -> int:
        (folder / "disk").mkdir(parents=True)
        disk = Disk(folder / "disk", fault, at)
        with suppress(Crashed), disk.attached(), new_folder(disk.root / "out") as new:
            for name, data in content.items():
                write_bytes(new / name, data)
        for loss in LOSSES:
            out = disk.after_power_cut(loss, folder / loss) / "out"
            found = {path.name: path.read_bytes() for path in out.iterdir()} if out.exists() else None
            assert found == content or (found is None and fault is not None), (at, loss)
        disk.close()
        return len(disk.done)

    count = operations(tmp_path / "whole", None)
    assert count > 10
    for at in range(count):
        operations(tmp_path / f"{at}", "crash", at)


@pytest.mark.parametrize(
    ("limit", "value", "cause"),
    [(resource.RLIMIT_FSIZE, 100, "File too large"), (resource.RLIMIT_NOFILE, 0, "Too many open files")],
)
def test_a_limit_of_the_system_is_named(limit: int, value: int, cause: str, tmp_path: Path) -> None:
    """C02, C08."""
    save(tmp_path, 10, 2.0)
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (value, before[1]))
    try:
        with pytest.raises(OutputError) as raised:
            save(tmp_path, 20, 3.0)
    finally:
        resource.setrlimit(limit, before)
    assert str(raised.value) == f"cannot write {tmp_path}/checkpoints/step-00000020; {cause}"
    remove_leftovers(tmp_path / "checkpoints")  # without a file handle there is no removing
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000010"]
    assert value_of(tmp_path) == (10, 2.0)


def test_a_run_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    """C09."""
    save(tmp_path / "run", 10, 2.0)
    shutil.rmtree(tmp_path / "run")
    save(tmp_path / "run", 20, 3.0)
    assert value_of(tmp_path / "run") == (20, 3.0)


def test_the_step_decides_and_not_the_clock(tmp_path: Path) -> None:
    """C14."""
    for step, day in ((10, 2e9), (20, 1e9), (30, 0)):
        save(tmp_path, step, float(step))
        os.utime(tmp_path / "checkpoints" / f"step-{step:08d}", (day, day))
    assert value_of(tmp_path) == (30, 30.0)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000020", "step-00000030"]


@pytest.mark.slow
def test_a_writer_that_is_killed_at_any_time_leaves_what_it_had(tmp_path: Path) -> None:
    """A real process and a real SIGKILL, ten times, each after some of the steps that follow the last."""
    script = (
        "import sys; from pathlib import Path; from tests.faults.trial import save\n"
        "print(flush=True)\n"
        "for step in range(int(sys.argv[2]), 10**8): save(Path(sys.argv[1]), step, float(step)); print(step, flush=1)"
    )
    step = 0
    for attempt in range(10):
        command = [sys.executable, "-c", script, str(tmp_path), str(step + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.Random(attempt).uniform(0, 0.2))
            process.kill()
            said = [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        remove_leftovers(tmp_path / "checkpoints")
        if said or step:
            found, value = value_of(tmp_path)
            assert found == value
            assert found in (max([step, *said]), max([step, *said]) + 1)
            step = found


Mutant = Callable[[pytest.MonkeyPatch], None]


def no_flush_of_files(patch: pytest.MonkeyPatch) -> None:
    def write_new(path: Path, parts: tuple[bytes, ...]) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        for part in parts:
            os.write(handle, part)
        os.close(handle)

    patch.setattr(files, "_write_new", write_new)


def no_flush_of_folders(which: Callable[[Path], bool]) -> Mutant:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        flush = files._sync_folder
        patch.setattr(files, "_sync_folder", lambda path: None if which(path) else flush(path))

    return mutate


def manifest_first(patch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: dict[str, bytes]) -> None:
        temporary = files._temporary(path)
        path.parent.mkdir(exist_ok=True)
        os.mkdir(temporary)
        manifest = {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in content.items()}
        for name, data in {"MANIFEST.json": json.dumps(manifest).encode(), **content}.items():
            files._write_new(temporary / name, (data,))
        os.rename(temporary, path)

    patch.setattr(checkpoint, "write_folder", write)


def written_in_place(patch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: dict[str, bytes]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        for name in content:
            (path / name).unlink(missing_ok=True)
        write_folder(path, content)

    patch.setattr(checkpoint, "write_folder", write)


def failures_swallowed(patch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: dict[str, bytes]) -> None:
        with suppress(OutputError):
            write_folder(path, content)

    patch.setattr(checkpoint, "write_folder", write)


def sizes_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files, "_require_sizes", lambda folder, content: None)


def old_ones_removed_first(patch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: dict[str, bytes]) -> None:
        for old in path.parent.glob("step-00000005"):
            remove_folder(old)
        write_folder(path, content)

    patch.setattr(checkpoint, "write_folder", write)


@pytest.mark.parametrize(
    ("mutate", "trial", "fault"),
    [
        (no_flush_of_files, ONE_MORE, "crash"),
        (no_flush_of_folders(lambda path: path.name == "checkpoints"), ONE_MORE, "crash"),
        (no_flush_of_folders(lambda path: path.name.startswith(".step-")), ONE_MORE, "crash"),
        (no_flush_of_folders(lambda path: path.name == "run"), THE_FIRST, "crash"),
        (manifest_first, ONE_MORE, "crash"),
        (written_in_place, AGAIN, "crash"),
        (failures_swallowed, ONE_MORE, "i/o error"),
        (failures_swallowed, ONE_MORE, "no space"),
        (sizes_not_looked_at, ONE_MORE, "torn write"),
        (old_ones_removed_first, ONE_MORE, "crash"),
    ],
)
def test_a_writer_with_one_guarantee_less_is_caught(
    mutate: Mutant, trial: Trial, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        trial.run_all(fault, tmp_path)
