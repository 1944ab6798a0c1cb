"""Signals at awkward times: during set-up and measurement, twice, with nobody reading, or to stop and go on.

A test takes 5 to 10 seconds: a run with data workers begins, is stopped or killed, and goes on.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from smalti.cli import main
from smalti.core.log import Log
from smalti.data.load import Data
from smalti.distributed.signals import TerminatedError, raise_on_sigterm, recorded_signals
from smalti.runs import check, train_tokenizer
from tests.faults.kills import ROOT, Nursery, Whole, World, end_of, go_on
from tests.small_runs import TOKENIZER_FLAGS, metrics, newest_checkpoint, result, weights
from tests.small_runs import train_tokenizer as train

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def world(one: Nursery, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.made(tmp_path_factory.mktemp("world"), one)


@pytest.fixture(scope="module")
def whole(one: Nursery, world: World) -> Whole:
    """With data workers, so that there is something to be orphaned."""
    return Whole.made(one, "workers", world, world.photos.parent / "whole")


def begun(one: Nursery, whole: Whole, run: Path, *flags: str, change: str = "slow") -> int:
    """A run with slow steps, of which two are done; its process id."""
    child, path = one.begin([*whole.command(run), *flags], change), run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline, one.told()
        time.sleep(0.02)
    return child


def goes_on(one: Nursery, whole: Whole, run: Path) -> None:
    """And nobody can tell afterwards (D10: nothing is left of either)."""
    assert one.run(go_on(whole, run)) == 0, one.told()
    assert end_of(run) == whole.files


@pytest.mark.slow
def test_d06_sigterm_and_then_sigkill(one: Nursery, whole: Whole, tmp_path: Path) -> None:
    child = begun(one, whole, tmp_path / "run")
    os.kill(child, signal.SIGTERM)
    time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    assert one.ended_and_left(child) in (-signal.SIGKILL, 75)
    goes_on(one, whole, tmp_path / "run")


@pytest.mark.slow
def test_d07_without_nohup_the_end_of_a_terminal_is_a_kill(one: Nursery, whole: Whole, tmp_path: Path) -> None:
    child = begun(one, whole, tmp_path / "run")
    os.kill(child, signal.SIGHUP)
    assert one.ended_and_left(child) == -signal.SIGHUP
    goes_on(one, whole, tmp_path / "run")


def test_d08_a_run_that_is_stopped_goes_on_exactly(one: Nursery, whole: Whole, tmp_path: Path) -> None:
    """Longer than a worker may take for an image; the clock goes on meanwhile, and no worker or image is blamed."""
    child = begun(one, whole, tmp_path / "run", "--data.worker-timeout", "1")
    os.killpg(child, signal.SIGSTOP)
    time.sleep(2.5)
    os.killpg(child, signal.SIGCONT)
    assert one.ended_and_left(child) == 0, one.told()
    assert end_of(tmp_path / "run") == whole.files
    assert "a data worker" not in one.told()
    assert not (tmp_path / "run" / "bad_files.jsonl").exists()


def test_d10_what_was_killed_leaves_no_process_no_memory_and_no_lock(
    one: Nursery, whole: Whole, tmp_path: Path
) -> None:
    """The file of the lock stays, and the system has released it."""
    child = begun(one, whole, tmp_path / "run")
    os.kill(child, signal.SIGKILL)
    assert one.ended_and_left(child) == -signal.SIGKILL
    assert (tmp_path / "run" / ".lock").exists()
    goes_on(one, whole, tmp_path / "run")


@pytest.mark.slow
def test_d07_under_nohup_the_end_of_a_terminal_is_ignored(one: Nursery, whole: Whole, tmp_path: Path) -> None:
    child = begun(one, whole, tmp_path / "run", change="slow+nohup")
    os.killpg(child, signal.SIGHUP)
    assert one.ended_and_left(child) == 0
    assert end_of(tmp_path / "run") == whole.files


def started(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """The command line as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "smalti", *command], env=environment, **options)


def test_d07_a_run_whose_messages_nobody_reads_trains_to_its_end(world: World, tmp_path: Path) -> None:
    """As behind `2>&1 | head`."""
    assert train(world.photos, tmp_path / "whole", 4) == 0
    read, write = os.pipe()
    os.close(read)
    where = ["--data", str(world.photos), "--out", str(tmp_path / "run"), "--plan.steps", "4"]
    with started(["train-tokenizer", "tiny", *TOKENIZER_FLAGS, *where], stderr=write) as process:
        os.close(write)
        assert process.wait(240) == 0
    for found in (weights, metrics, result):
        assert found(tmp_path / "run") == found(tmp_path / "whole")


def test_d07_results_that_nobody_reads_end_quietly(world: World) -> None:
    read, write = os.pipe()
    os.close(read)
    command = ["check", str(world.photos), "--json"]
    with started(command, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait(120) == 6
    assert "rror" not in said


def test_a_log_that_nobody_reads_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2, raising=False)
    log.console.on_broken_pipe()
    assert log.console.quiet


PLACES = {
    "while images are read": (Data, "open"),
    "while the model is built": (train_tokenizer, "prepare"),
    "while it is measured": (train_tokenizer, "evaluate_tokenizer"),
}


@pytest.mark.parametrize("place", PLACES)
def test_d03_sigterm_outside_of_training_ends_a_run_at_once(
    place: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 75, no lock, nothing half; the same command or a resume ends as if nothing had happened."""
    owner, name = PLACES[place]
    run, whole = tmp_path / "run", getattr(owner, name)

    def with_signal(*arguments: object, **options: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, with_signal)
        assert train(world.photos, run, 3) == 75
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "stopped: on SIGTERM; start it again, a training run with --resume"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if place == "while it is measured":
        assert not (run / ".lock").exists()
        assert newest_checkpoint(run).name == "step-00000003"
        assert main(["train-tokenizer", "--resume", str(run)]) == 0
    else:
        assert not run.exists()
        assert train(world.photos, run, 3) == 0
    assert train(world.photos, tmp_path / "whole", 3) == 0
    for found in (weights, metrics, result):
        assert found(run) == found(tmp_path / "whole")


def test_d03_a_scan_that_is_not_trained_on_ends_as_well(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "main", lambda _: signal.raise_signal(signal.SIGTERM))
    assert main(["check", str(world.photos)]) == 75
    assert re.match("stopped: on SIGTERM; ", capsys.readouterr().err)


def test_sigterm_becomes_an_exception_and_the_second_one_is_obeyed() -> None:
    with raise_on_sigterm():
        with pytest.raises(TerminatedError):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_training_notes_signals_that_would_end_what_is_around_it() -> None:
    with raise_on_sigterm(), recorded_signals() as requests:
        signal.raise_signal(signal.SIGTERM)
    assert requests.stop == signal.SIGTERM


def test_a_handler_of_somebody_else_stays_theirs() -> None:
    heard: list[int] = []

    def theirs(number: int, _: object) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with raise_on_sigterm():
            signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)
