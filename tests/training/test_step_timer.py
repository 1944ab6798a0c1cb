"""What a run is bound by."""

import time

import pytest
import torch

from smalti.core.contracts import Batch
from smalti.core.log import Log
from smalti.training.profiling import StepTimer


class Made:
    """Batches that take their time, on paper."""

    def __init__(self, clock: "Clock", reading: float, tokenizing: float) -> None:
        self.clock, self.reading, self.tokenizing, self.wait_seconds = clock, reading, tokenizing, 7.0

    def __call__(self, step: int) -> Batch:
        self.wait_seconds += self.reading
        self.clock.now += self.reading + self.tokenizing
        return None  # type: ignore[return-value]

    def close(self) -> None:
        pass


class Clock:
    now = 100.0


@pytest.mark.parametrize(
    ("device", "reading", "tokenizing", "training", "said"),
    [
        ("cpu", 0.1, 0.2, 0.7, "data wait 10%, bound by computing"),
        ("cpu", 0.6, 0.1, 0.3, "data wait 60%, bound by reading images (more --data.num-workers, or smalti prepare)"),
        ("cpu", 0.1, 0.6, 0.3, "data wait 10%, bound by tokenizing"),
        ("cuda", 0.1, 0.5, 0.4, "data wait 10%, bound by the GPU"),
        ("cuda", 0.6, 0.1, 0.3, "data wait 60%, bound by reading images (more --data.num-workers, or smalti prepare)"),
    ],
)
def test_the_largest_share_is_named(
    device: str, reading: float, tokenizing: float, training: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    spent = StepTimer(Made(clock, reading, tokenizing), torch.device(device))
    for step in range(3):
        spent.on_batch(step)
        clock.now += training
    assert ", ".join(spent.describe()) == said


def test_the_first_step_is_told_of_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    spent = StepTimer(Made(clock, reading=1.0, tokenizing=0.5), torch.device("cpu"))
    for step in range(2):
        spent.on_batch(step)
        clock.now += 20
        spent.after_step(Log())
    assert capsys.readouterr().err == "first step after 21.5 s\n"
