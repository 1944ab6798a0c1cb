"""Profiling of some training steps: a trace, and a table of the slowest operations."""

from pathlib import Path

from torch.profiler import profile

from smalti.core.contracts import Batch, Batches
from smalti.core.log import Log

_WARM = 3
"""Steps before the first that is recorded, which compile and allocate memory."""
_ROWS = 12


class Profiled:
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
        if self.asked == _WARM:
            self.profile = profile()
            self.profile.start()
        if self.asked == _WARM + self.steps:
            self._finish()
        self.asked += 1
        return self.batches(step)

    @property
    def waited(self) -> float:
        """Seconds spent waiting for images so far."""
        return self.batches.waited

    def close(self) -> None:
        """Stop background work, and the profile where the run is shorter than it."""
        if self.asked <= _WARM:
            self.log.say(f"nothing is profiled: the first {_WARM} steps warm up, and there are no more")
        self._finish()
        self.batches.close()

    def _finish(self) -> None:
        if self.profile is None:
            return
        recorded, self.profile = self.profile, None
        recorded.stop()
        recorded.export_chrome_trace(str(self.trace))
        self.log.say(f"{self.trace}: {self.asked - _WARM} steps")
        for line in table(recorded, self.asked - _WARM):
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
