"""Schedules: a value for each optimiser step, counted from 0."""

import math
from dataclasses import dataclass

from smalti.core.config import require


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up from 0 to `peak`, then half a cosine down (or up) to `end`, then constant.

    Args:
        peak: value right after the warm-up.
        end: value at `steps` and later.
        steps: length of the whole schedule in optimiser steps.
        warmup: length of the linear part in optimiser steps; step s of it has the value peak·s/warmup, so step 0 is 0.

    Example:
        >>> Cosine(peak=1.0, end=0.0, steps=10, warmup=2)(1)
        0.5

    Reference: BEiT §2.5 (10 epochs of warm-up, cosine decay); DALL-E, appendix A.2 (learning rate, temperature and β).
    """

    peak: float
    end: float
    steps: int
    warmup: int = 0

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"a schedule of {self.steps} steps", "use at least 1")
        require(
            0 <= self.warmup < self.steps, f"a warm-up of {self.warmup} steps in a run of {self.steps}", "shorten it"
        )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * step / self.warmup
        progress = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        return self.end + (self.peak - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Ramp:
    """Linear from 0 to `end` over `steps`, then constant: the KL weight of the small recipes.

    Differs: DALL-E, appendix A.2, changes it by a cosine, `Cosine(0.0, 6.6, 5000)`.
    """

    end: float
    steps: int

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"a ramp of {self.steps} steps", "use at least 1")

    def __call__(self, step: int) -> float:
        return self.end * min(1.0, step / self.steps)
