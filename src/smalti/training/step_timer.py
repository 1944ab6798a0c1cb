"""Where the time of a run goes."""

import time

from smalti.core.contracts import Batch, Batches
from smalti.core.log import Log

_DATA = "reading images (more --data.num-workers, or smalti prepare)"


class StepTimer:
    """Where the time of a run goes: waiting for images, making their tokens, and the network."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.on_batches, self.began = batches, 0.0, time.perf_counter()
        self.waited_before = batches.waited
        self.running = False

    def on_batch(self, step: int) -> Batch:
        """The batch of a step; the time it takes is noted."""
        began = time.perf_counter()
        batch = self.batches(step)
        self.on_batches += time.perf_counter() - began
        return batch

    def after_step(self, log: Log) -> None:
        """Say once how long it took until the first step was done: where something is compiled, mostly that."""
        if not self.running:
            log.say(f"first step after {time.perf_counter() - self.began:.1f} s")
        self.running = True

    def describe(self) -> str:
        """The shares so far, and what the run is bound by."""
        total = max(time.perf_counter() - self.began, 1e-9)
        data = (self.batches.waited - self.waited_before) / total
        tokens = max(self.on_batches / total - data, 0.0)
        verdict = max((1 - data - tokens, "computing"), (data, _DATA), (tokens, "tokenizing"))[1]
        return f"data wait {data:.0%}, bound by {verdict}"
