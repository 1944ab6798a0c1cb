"""Batches whose images are changed further after crop, mirror and colours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from smalti.core.contracts import Batch, Batches
from smalti.core.rng import Keys

Change: TypeAlias = Callable[[Batch], Batch]
"""A function of the batch alone, all its randomness drawn from `keys_of`."""


@dataclass(frozen=True)
class Changed:
    """Batches on the device, with every change made in turn."""

    batches: Batches
    changes: tuple[Change, ...]
    device: torch.device

    def __call__(self, step: int) -> Batch:
        """The batch of one step, counted from 0."""
        batch = self.batches(step).to(self.device)
        for change in self.changes:
            batch = change(batch)
        return batch

    @property
    def waited(self) -> float:
        """Seconds that images have kept the caller waiting."""
        return self.batches.waited

    def close(self) -> None:
        """End what works in the background."""
        self.batches.close()


def keys_of(batch: Batch) -> Keys:
    """The key of each image, to draw from."""
    return batch.key.cpu().numpy().view(np.uint64)
