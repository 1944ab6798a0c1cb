"""How the time of a run is divided between data, tokenizer and network."""

import time

from smalti.core.contracts import Batch, Batches
from smalti.core.log import Log

_DATA = "reading images (more --data.num-workers, or smalti prepare)"


class StepTimer:
    """Measures the time spent waiting for images, computing visual tokens, and in the network."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.on_batches, self.began = batches, 0.0, time.perf_counter()
        self.waited_before = batches.waited
        self.running = False

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
        self.running = True

    def describe(self) -> str:
        """The shares so far, and which of them limits the run."""
        total = max(time.perf_counter() - self.began, 1e-9)
        data = (self.batches.waited - self.waited_before) / total
        tokens = max(self.on_batches / total - data, 0.0)
        verdict = max((1 - data - tokens, "computing"), (data, _DATA), (tokens, "tokenizing"))[1]
        return f"data wait {data:.0%}, bound by {verdict}"
