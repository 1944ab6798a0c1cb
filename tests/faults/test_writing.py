"""Whatever operation of a checkpoint write fails, and however: the older checkpoint or the new one is read."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest

from smalti.core import files
from smalti.core.errors import OutputError
from smalti.core.files import remove_folder, sha256, write_folder
from smalti.training import checkpoint
from tests.faults.disk import Fault
from tests.faults.trial import WRITES_ONLY, Trial

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
    """Files, their folder and the folder it is in are made, written, flushed and renamed: 14 operations at least."""
    assert trial.run_all(fault, tmp_path) >= (4 if fault in WRITES_ONLY else 14)


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
