"""The copy baseline: predict for a masked patch the visual token of the nearest visible patch."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smalti.functional.metrics import entropy


def nearest_visible(mask: Bool[Tensor, "B N"], index: Int[Tensor, "B K"], grid: tuple[int, int]) -> Int[Tensor, "B K"]:
    """The visible patch nearest to each of the patches in `index` by Manhattan distance, the first of several.

    Args:
        mask: True where masked; every image has at least one visible patch.
        index: flat positions in [0, N).
        grid: rows and columns.

    Returns:
        Flat positions of visible patches, in [0, N).
    """
    number = torch.arange(mask.shape[1], device=mask.device)
    row, column = number // grid[1], number % grid[1]
    steps = (row[:, None] - row).abs() + (column[:, None] - column).abs()
    order = steps * len(number) + number  # by distance, then by number
    return order[index].masked_fill(mask[:, None], order.numel() * 2).min(-1).values % len(number)


class CopyBaseline(NamedTuple):
    """Metrics of the copy baseline.

    Attributes:
        nats: cross-entropy of λ·1[z = neighbour] + (1-λ)·unigram(z), in nats per masked patch.
        weight: the λ in [0, 1] that minimises it.
        accuracy: share of masked patches whose token is the neighbour's, in [0, 1].
    """

    nats: float
    weight: float
    accuracy: float


def copying(hits: Float[Tensor, "V"], misses: Float[Tensor, "V"]) -> CopyBaseline:
    """The mixture of the neighbour's token and the unigram distribution, both fitted to these same patches.

    -ln p(z) is -ln(λ + (1-λ) u(z)) where the neighbour has the token z, else -ln((1-λ) u(z)), where u(z) is the share
    of z among the masked patches. The mean is convex in λ and minimised by bisection of its derivative. At λ = 0 it is
    the unigram entropy, which it therefore never exceeds.

    Args:
        hits: number of masked patches with each token whose neighbour has the same token.
        misses: number of masked patches with each token whose neighbour has another one.
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
