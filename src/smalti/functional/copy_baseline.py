"""A guess that only copies: for a masked patch what stands in the nearest visible one."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smalti.functional.metrics import entropy


def nearest_visible(mask: Bool[Tensor, "B N"], index: Int[Tensor, "B K"], grid: tuple[int, int]) -> Int[Tensor, "B K"]:
    """The visible patch nearest to each of the patches in `index`: fewest steps up, down, left or right.

    Of several equally near ones it is the first in reading order.

    Args:
        mask: True where masked; every image shows at least one patch.
        index: flat positions.
        grid: rows and columns.
    """
    number = torch.arange(mask.shape[1], device=mask.device)
    row, column = number // grid[1], number % grid[1]
    steps = (row[:, None] - row).abs() + (column[:, None] - column).abs()
    order = steps * len(number) + number  # by distance, then by number
    return order[index].masked_fill(mask[:, None], order.numel() * 2).min(-1).values % len(number)


class CopyBaseline(NamedTuple):
    """What copying the neighbour is worth.

    Attributes:
        nats: cross-entropy of λ·1[z = neighbour] + (1-λ)·unigram(z), per masked patch.
        weight: λ, the one that makes it least.
        accuracy: share of masked patches whose token is the neighbour's.
    """

    nats: float
    weight: float
    accuracy: float


def copying(hits: Float[Tensor, "V"], misses: Float[Tensor, "V"]) -> CopyBaseline:
    """The neighbour as a predictor, its one weight and the unigram distribution fitted to these very patches.

    -ln p(z) is -ln(λ + (1-λ) u(z)) where the neighbour has the token z, else -ln((1-λ) u(z)), with u the share of z
    among all of them. The mean is convex in λ; its derivative is bisected. λ = 0 is the unigram entropy, so this
    baseline never lies above it.

    Args:
        hits, misses: how often each token is masked where the neighbour has the same one, and another.
    """
    hits, misses = hits.double(), misses.double()
    total = float((hits + misses).sum())
    if not hits.any():
        return CopyBaseline(float(entropy(misses)), 0.0, 0.0)
    share = (hits + misses) / total
    low, high = 0.0, 1.0
    for _ in range(60):
        weight = (low + high) / 2
        gain = (hits * (1 - share) / (weight + (1 - weight) * share)).sum() - misses.sum() / (1 - weight)
        low, high = (weight, high) if gain > 0 else (low, weight)
    right = torch.special.xlogy(hits, low + (1 - low) * share).sum()
    wrong = torch.special.xlogy(misses, (1 - low) * share).sum()
    return CopyBaseline(-float(right + wrong) / total, low, float(hits.sum()) / total)
