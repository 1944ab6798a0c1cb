"""A training run that gets signals, as a process of its own: what it leaves, and that it goes on bit for bit.

A test takes 3 to 12 seconds: a run with data workers begins, is ended, and goes on.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smalti.cli import main
from tests.faults.kills import Nursery, assert_nothing_left
from tests.small_runs import (
    PRETRAIN_FLAGS,
    TOKENIZER_FLAGS,
    metrics,
    newest_checkpoint,
    pictures,
    pretrain,
    result,
    train_tokenizer,
    weights,
)

pytestmark = pytest.mark.processes

STEPS = 30
STREAM = ["--data.memory", "stream", "--data.num-workers", "2"]
RUN = {"config.json", "data.json", "metrics.jsonl", "checkpoints"}


class Started:
    """A training process in a group of its own, with a change of the program."""

    def __init__(self, one: Nursery, run: Path, command: list[str], change: str) -> None:
        self.run, self._nursery = run, one
        self.pid = one.begin(command, change)
        self.code: int | None = None

    def wait_until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not true():
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.02)

    def wait_for_steps(self, steps: int) -> None:
        path = self.run / "metrics.jsonl"
        self.wait_until(lambda: path.exists() and len(path.read_text().splitlines()) >= steps)

    def ended(self) -> int | None:
        self.code = self._nursery.ended(120)
        return self.code

    def lines(self) -> list[str]:
        return self._nursery.told().splitlines()


@contextmanager
def started(one: Nursery, run: Path, command: list[str], change: str = "slow") -> Iterator[Started]:
    begun = Started(one, run, command, change)
    try:
        yield begun
    finally:
        if begun.code is None:
            os.kill(begun.pid, signal.SIGKILL)
            begun.ended()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("signals") / "photos")


@pytest.fixture(scope="module")
def tokenizer(photos: Path) -> Path:
    """What training without signals ends in."""
    assert train_tokenizer(photos, photos.parent / "tokenizer", STEPS, *STREAM) == 0
    return photos.parent / "tokenizer"


def tokenizer_command(photos: Path, run: Path) -> list[str]:
    where = ["--data", str(photos), "--out", str(run), "--plan.steps", str(STEPS)]
    return ["train-tokenizer", "tiny", *TOKENIZER_FLAGS, *STREAM, *where]


def assert_same(run: Path, whole: Path) -> None:
    assert weights(run) == weights(whole)
    assert metrics(run) == metrics(whole)
    assert result(run) == result(whole)


def test_d01_sigterm_ends_a_run_that_goes_on_as_if_nothing_had_happened(
    one: Nursery, photos: Path, tokenizer: Path, tmp_path: Path
) -> None:
    assert pretrain(photos, tokenizer, tmp_path / "whole", STEPS) == 0
    run = tmp_path / "run"
    where = ["--data", str(photos), "--tokenizer", str(tokenizer), "--out", str(run), "--plan.steps", str(STEPS)]
    with started(one, run, ["pretrain", "tiny", *PRETRAIN_FLAGS, *where]) as begun:
        begun.wait_for_steps(2)
        os.kill(begun.pid, signal.SIGTERM)
        assert begun.ended() == 75
    step = int(newest_checkpoint(run).name.removeprefix("step-"))
    assert 2 <= step < STEPS
    assert begun.lines()[-1] == (
        f"stopped: pretrain after step {step}, saved; on SIGTERM; go on with smalti pretrain --resume {run}"
    )
    assert {path.name for path in run.iterdir()} == RUN
    assert len(metrics(run)) == step
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert_same(run, tmp_path / "whole")


def test_d05_ctrl_c_reaches_data_workers_too_and_they_say_nothing(
    one: Nursery, photos: Path, tokenizer: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with started(one, run, tokenizer_command(photos, run)) as begun:
        begun.wait_for_steps(2)
        os.killpg(begun.pid, signal.SIGINT)
        assert begun.ended() == 130
    step = int(newest_checkpoint(run).name.removeprefix("step-"))
    assert begun.lines()[-1] == (
        f"stopped: tokenizer after step {step}, saved; on SIGINT; go on with smalti train-tokenizer --resume {run}"
    )
    assert not any("Traceback" in line or "a data worker" in line for line in begun.lines())
    assert_nothing_left(begun.pid)
    assert {path.name for path in run.iterdir()} == RUN
    assert main(["train-tokenizer", "--resume", str(run)]) == 0
    assert_same(run, tokenizer)


def test_d09_sigusr1_to_all_saves_and_the_run_goes_on(
    one: Nursery, photos: Path, tokenizer: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with started(one, run, tokenizer_command(photos, run)) as begun:
        begun.wait_for_steps(2)
        os.killpg(begun.pid, signal.SIGUSR1)
        begun.wait_until(lambda: any((run / "checkpoints").glob("step-*")))
        assert not (run / "checkpoints" / f"step-{STEPS:08d}").exists()
        assert begun.ended() == 0
    assert not any("a data worker" in line for line in begun.lines())
    assert_nothing_left(begun.pid)
    assert_same(run, tokenizer)


def test_d04_a_second_signal_ends_a_run_at_once(one: Nursery, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(one, run, tokenizer_command(photos, run), "hangs") as begun:
        begun.wait_for_steps(3)
        os.kill(begun.pid, signal.SIGTERM)
        begun.wait_until(
            lambda: "SIGTERM: the step is finished and saved first; once more ends at once" in begun.lines()
        )
        os.kill(begun.pid, signal.SIGTERM)
        assert begun.ended() == -signal.SIGTERM
    assert not any("Traceback" in line for line in begun.lines())
    assert_nothing_left(begun.pid)
    assert {path.name for path in run.iterdir()} - {".lock"} == RUN - {"checkpoints"}  # the system has released it
