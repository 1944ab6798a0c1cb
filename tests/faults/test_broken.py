"""Guarantees taken away once: the tests of disks, writers, readers and secrets notice each."""

import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smalti import cli
from smalti.core import addresses, files, log
from smalti.core.errors import CheckpointError, OutputError
from smalti.runs import folder
from smalti.training import checkpoint
from tests.faults import test_output, test_secrets, test_together
from tests.runs import test_folder

Mutant = Callable[[pytest.MonkeyPatch], None]


def no_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fcntl, "flock", lambda handle, operation: None)


def no_second_look(patch: pytest.MonkeyPatch) -> None:
    first: dict[Path, list[tuple[int, Path]]] = {}
    look = checkpoint._checkpoints
    patch.setattr(checkpoint, "_checkpoints", lambda run: list(first.setdefault(run, look(run))))


def halves_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "ftruncate", lambda handle, size: None)


def no_gap_is_marked(patch: pytest.MonkeyPatch) -> None:
    record = log.Log.record

    def forgetful(self: Any, **values: Any) -> None:
        record(self, **values)
        self._lost = 0

    patch.setattr(log.Log, "record", forgetful)


def no_second_try(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files, "_TRANSIENT", ())


def modes_are_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stat, "S_IMODE", lambda mode: 0o600)


def secrets_are_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(folder, "_public", lambda value: value)


def names_are_obeyed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cli, "printable", lambda text: text)


def secrets_are_shown(patch: pytest.MonkeyPatch) -> None:
    for module in (addresses, log):
        patch.setattr(module, "without_secrets", lambda text: text)


def error_over_many_lines(tmp_path: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    test_secrets.test_k17_no_error_can_steer_the_terminal([test_secrets.EVIL], capsys, patch, tmp_path)


TRIED: dict[Mutant, Callable[[Path, pytest.MonkeyPatch, Any], None]] = {
    no_lock: lambda path, patch, said: test_folder.test_the_second_writer_is_refused_and_told_who_is_first(path),
    no_second_look: test_together.test_j06_a_reader_whose_checkpoints_have_all_made_way_reads_the_new_ones,
    halves_stay: lambda path, patch, said: test_output.test_c03_a_line_that_was_written_halfway_is_taken_back(
        path, patch
    ),
    no_gap_is_marked: (
        test_output.test_c03_where_metrics_cannot_be_written_there_is_one_warning_and_a_gap_that_is_marked
    ),
    no_second_try: lambda path, patch, said: (
        test_output.test_c12_what_a_network_file_system_says_for_a_moment_is_waited_for(116, "write", path, patch)
    ),
    modes_are_lost: lambda path, patch, said: test_output.test_c13_a_file_that_is_replaced_hands_its_mode_on(path),
    secrets_are_kept: lambda path, patch, said: (
        test_secrets.test_k18_a_run_folder_keeps_the_address_without_password_and_signature(path, "https")
    ),
    names_are_obeyed: error_over_many_lines,
    secrets_are_shown: lambda path, patch, said: test_secrets.test_k18_the_console_shows_no_secret_of_an_address(
        said, path
    ),
}


@pytest.mark.parametrize("mutate", TRIED, ids=lambda mutate: mutate.__name__)
def test_a_guarantee_that_is_taken_away_is_missed(
    mutate: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mutate(monkeypatch)
    with pytest.raises((AssertionError, CheckpointError, OutputError, pytest.fail.Exception)):
        TRIED[mutate](tmp_path, monkeypatch, capsys)
