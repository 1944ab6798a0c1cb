"""Where the time of a run goes: data, tokenizer and network; a trace of some steps and a table of their operations."""

import time
from pathlib import Path

import torch
from torch.profiler import profile

from smalti.core.contracts import Batch, Batches, BatchWrapper
from smalti.core.log import Log

_DATA = "reading images (more --data.num-workers, or smalti prepare)"
_WARMUP_STEPS = 3
"""Steps before the first that is recorded, which compile and allocate memory."""
_ROWS = 12


class StepTimer:
    """Measures the time spent waiting for images, computing visual tokens, and in the network.

    A GPU computes tokens while the program goes on, so that there their time is part of that of the network.
    """

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self.batches, self.on_cpu, self.on_batches = batches, device.type == "cpu", 0.0
        self.began = time.perf_counter()
        self.wait_seconds_before = batches.wait_seconds
        self.running, self.steps, self.since = False, 0, 0.0

    def on_batch(self, step: int) -> Batch:
        """The batch of a step, whose time is measured."""
        began = time.perf_counter()
        batch = self.batches(step)
        self.on_batches += time.perf_counter() - began
        return batch

    def after_step(self, log: Log) -> None:
        """Log once how long the first step took, which includes compilation."""
        if not self.running:
            log.say(f"first step after {time.perf_counter() - self.began:.1f} s")
            self.running, self.since = True, time.perf_counter()
        else:
            self.steps += 1

    def speed(self, batch_size: int) -> str:
        """Images per second since this was asked last, without the first step; empty where no step was done since."""
        steps, now = self.steps, time.perf_counter()
        taken, self.steps, self.since = now - self.since, 0, now
        return f"{steps * batch_size / max(taken, 1e-9):.0f} img/s" if steps else ""

    def describe(self) -> tuple[str, str]:
        """The share of time spent waiting for images so far, and what limits the run."""
        total = max(time.perf_counter() - self.began, 1e-9)
        data = (self.batches.wait_seconds - self.wait_seconds_before) / total
        tokens = max(self.on_batches / total - data, 0.0)
        rest = [(1 - data - tokens, "computing"), (tokens, "tokenizing")]
        verdict = max((data, _DATA), *(rest if self.on_cpu else [(1 - data, "the GPU")]))[1]
        return f"data wait {data:.0%}", f"bound by {verdict}"


class Profiled(BatchWrapper):
    """Wraps batches to profile some steps, each from one batch to the next.

    Attributes:
        trace: path of the trace, for chrome://tracing or ui.perfetto.dev.
    """

    def __init__(self, batches: Batches, steps: int, run: Path, log: Log) -> None:
        self.batches, self.steps, self.log = batches, steps, log
        self.trace = run / "profile.json"
        self.asked = 0
        self.profile: profile | None = None

    def __call__(self, step: int) -> Batch:
        """The batch of one step."""
        if self.asked == _WARMUP_STEPS:
            self.profile = profile()
            self.profile.start()
        if self.asked == _WARMUP_STEPS + self.steps:
            self._finish()
        self.asked += 1
        return self.batches(step)

    def close(self) -> None:
        """Stop background work, and the profile where the run is shorter than it."""
        if self.asked <= _WARMUP_STEPS:
            self.log.say(f"nothing is profiled: the first {_WARMUP_STEPS} steps warm up, and there are no more")
        self._finish()
        super().close()

    def _finish(self) -> None:
        if self.profile is None:
            return
        recorded, self.profile = self.profile, None
        recorded.stop()
        recorded.export_chrome_trace(str(self.trace))
        self.log.say(f"{self.trace}: {self.asked - _WARMUP_STEPS} steps")
        for line in table(recorded, self.asked - _WARMUP_STEPS):
            self.log.say(line)


def table(recorded: profile, steps: int) -> list[str]:
    """The operations with the greatest self time, in milliseconds per step."""
    events = recorded.key_averages()
    on_device = any(event.device_type.name == "CUDA" for event in events)
    taken = {
        event.key: event.self_device_time_total if on_device else event.self_cpu_time_total
        for event in events
        if not on_device or event.device_type.name == "CUDA"
    }
    total = sum(taken.values())
    longest = sorted(taken, key=lambda name: taken[name], reverse=True)[:_ROWS]
    lines = [f"{taken[name] / steps / 1000:9.1f} ms  {taken[name] / total:4.0%}  {name[:80]}" for name in longest]
    rest = total - sum(taken[name] for name in longest)
    return [*lines, f"{rest / steps / 1000:9.1f} ms  {rest / total:4.0%}  all other operations"]
