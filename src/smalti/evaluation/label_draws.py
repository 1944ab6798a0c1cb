"""Draws of few labels, and 95 % confidence intervals of a mean over draws and of a share of test images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from smalti.core.rng import fold_one
from smalti.data.splits import few_labels

Interval: TypeAlias = tuple[float, float]
_NORMAL = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Budget:
    """The number of labelled images per class, as a number or as a share of the class."""

    name: str
    each: int = 0
    share: float = 0.0

    def draw(self, labels: Int[Tensor, "n"], among: Int[Tensor, "m"], seed: int, number: int) -> Int[Tensor, "l"]:
        """Positions of the labelled images of one draw.

        Draws with different `number` are independent. With the same one, a larger budget contains a smaller one.

        Args:
            labels: of all training images, of which a share is taken.
            among: positions that may be drawn.
        """
        own = fold_one(seed, number)
        return torch.from_numpy(few_labels(labels.numpy(), among.numpy(), self.share, self.each or None, own))


BUDGETS = (
    Budget("1 a class", each=1),
    Budget("5 a class", each=5),
    Budget("10 a class", each=10),
    Budget("1 %", share=0.01),
    Budget("10 %", share=0.1),
)


def share_interval(share: float, count: int) -> Interval:
    """The interval of a share of `count` images, such as an accuracy, over the choice of test images.

    Reference: Wilson 1927, the score interval.
    """
    z = _NORMAL**2 / count
    middle = (share + z / 2) / (1 + z)
    half = math.sqrt(z * share * (1 - share) + z * z / 4) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """The interval of the mean of independent draws, by Student's t; None for a single draw."""
    count = len(values)
    if count < 2:
        return None
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    half = student_quantile(count - 1) * math.sqrt(variance / count)
    return mean - half, mean + half


def mean_share_interval(shares: Sequence[float]) -> Interval | None:
    """`mean_interval` of shares such as accuracies, cut to [0, 1], where their mean lies: so it covers it as often."""
    interval = mean_interval(shares)
    return None if interval is None else (max(0.0, interval[0]), min(1.0, interval[1]))


def student_quantile(freedom: int) -> float:
    """The t with P(|T| < t) = 0.95 for `freedom` degrees of freedom ν, found by bisection.

    With tan θ = t/√ν the probability is a finite sum of powers of cos θ.

    Reference: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_probability(middle, freedom) < 0.95 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _student_probability(angle: float, freedom: int) -> float:
    """P(|T| < √ν tan angle)."""
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for power in range(2 + odd, freedom - 1, 2):
        term *= (power - 1) / power * math.cos(angle) ** 2
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))
