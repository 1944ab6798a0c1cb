"""A training run that gets signals, as a process of its own: what it leaves, and that it goes on bit for bit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smalti.cli import main
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

STEPS = 30
STREAM = ["--data.memory", "stream", "--data.num-workers", "2"]
RUN = {"config.json", "data.json", "metrics.jsonl", "checkpoints"}
PROGRAM = """
import sys, time
from smalti.cli import main
from smalti.training.trainer import Trainer

whole, pause, from_step = Trainer.train_step, float(sys.argv[1]), int(sys.argv[2])

def train_step(trainer, *arguments, **named):
    time.sleep(pause if trainer.step >= from_step else 0)
    return whole(trainer, *arguments, **named)

if __name__ == "__main__":
    Trainer.train_step = train_step
    sys.exit(main(sys.argv[3:]))
"""


class Started:
    """A training process in a group of its own, with steps that take `pause` seconds from some step on."""

    def __init__(self, run: Path, command: list[str], pause: float, from_step: int = 0) -> None:
        self.run, self.err = run, run.parent / "stderr"
        program = run.parent / "program.py"
        program.write_text(PROGRAM)
        root = Path(__file__).parent.parent.parent
        environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
        with open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(program), str(pause), str(from_step), *command],
                stderr=err,
                env=environment,
                start_new_session=True,
            )

    def wait_until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not true():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.02)

    def wait_for_steps(self, steps: int) -> None:
        path = self.run / "metrics.jsonl"
        self.wait_until(lambda: path.exists() and len(path.read_text().splitlines()) >= steps)

    def ended(self) -> int:
        return self.process.wait(timeout=120)

    def lines(self) -> list[str]:
        return self.err.read_text().splitlines()

    def left(self) -> str:
        """The processes of the group that are left, after a moment; those that wait to be reaped do not count."""
        told = ""
        for _ in range(50):
            listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True)
            lines = [line.split(None, 2) for line in listed.stdout.splitlines()]
            told = "\n".join(args for pgid, stat, args in lines if int(pgid) == self.process.pid and stat[0] != "Z")
            if not told:
                break
            time.sleep(0.1)
        return told


@contextmanager
def started(run: Path, command: list[str], pause: float, from_step: int = 0) -> Iterator[Started]:
    one = Started(run, command, pause, from_step)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


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
    photos: Path, tokenizer: Path, tmp_path: Path
) -> None:
    assert pretrain(photos, tokenizer, tmp_path / "whole", STEPS) == 0
    run = tmp_path / "run"
    where = ["--data", str(photos), "--tokenizer", str(tokenizer), "--out", str(run), "--plan.steps", str(STEPS)]
    with started(run, ["pretrain", "tiny", *PRETRAIN_FLAGS, *where], pause=0.2) as one:
        one.wait_for_steps(2)
        one.process.send_signal(signal.SIGTERM)
        assert one.ended() == 75
    step = int(newest_checkpoint(run).name.removeprefix("step-"))
    assert 2 <= step < STEPS
    assert one.lines()[-1] == (
        f"stopped: pretrain after step {step}, saved; on SIGTERM; go on with smalti pretrain --resume {run}"
    )
    assert {path.name for path in run.iterdir()} == RUN
    assert len(metrics(run)) == step
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert_same(run, tmp_path / "whole")


def test_d05_ctrl_c_reaches_data_workers_too_and_they_say_nothing(
    photos: Path, tokenizer: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with started(run, tokenizer_command(photos, run), pause=0.2) as one:
        one.wait_for_steps(2)
        os.killpg(one.process.pid, signal.SIGINT)
        assert one.ended() == 130
    step = int(newest_checkpoint(run).name.removeprefix("step-"))
    assert one.lines()[-1] == (
        f"stopped: tokenizer after step {step}, saved; on SIGINT; go on with smalti train-tokenizer --resume {run}"
    )
    assert not any("Traceback" in line or "a data worker" in line for line in one.lines())
    assert one.left() == ""
    assert {path.name for path in run.iterdir()} == RUN
    assert main(["train-tokenizer", "--resume", str(run)]) == 0
    assert_same(run, tokenizer)


def test_d09_sigusr1_to_all_saves_and_the_run_goes_on(photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(run, tokenizer_command(photos, run), pause=0.1) as one:
        one.wait_for_steps(2)
        os.killpg(one.process.pid, signal.SIGUSR1)
        one.wait_until(lambda: any((run / "checkpoints").glob("step-*")))
        assert not (run / "checkpoints" / f"step-{STEPS:08d}").exists()
        assert one.ended() == 0
    assert not any("a data worker" in line for line in one.lines())
    assert one.left() == ""
    assert_same(run, tokenizer)


def test_d04_a_second_signal_ends_a_run_at_once(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(run, tokenizer_command(photos, run), pause=600, from_step=3) as one:
        one.wait_for_steps(3)
        one.process.send_signal(signal.SIGTERM)
        one.wait_until(lambda: "SIGTERM: the step is finished and saved first; once more ends at once" in one.lines())
        one.process.send_signal(signal.SIGTERM)
        assert one.ended() == -signal.SIGTERM
    assert not any("Traceback" in line for line in one.lines())
    assert one.left() == ""
    assert {path.name for path in run.iterdir()} - {".lock"} == RUN - {"checkpoints"}  # the system has released it
