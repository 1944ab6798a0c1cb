"""Lloyd's k-means, which initialises codebooks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MOST_DISTANCES = 1 << 25
"""Distances in memory at a time: 128 MB."""


def kmeans(points: Float[Tensor, "n P"], k: int, order: Int[Tensor, "n"], iterations: int = 10) -> Float[Tensor, "k P"]:
    """The centres of `k` clusters.

    Args:
        points: n ≥ 1; where there are fewer than k distinct points, centres repeat.
        k: number of centres.
        order: a permutation of [0, n), which is the source of randomness; its first k points are the initial centres.
        iterations: rounds of assignment and averaging. In each, the empty centres move to those points that are
            farthest from their centres, each to a different one.
    """
    centres = points[order[torch.arange(k) % len(points)]].clone()
    for _ in range(iterations):
        distance, nearest = _assign(points, centres)
        counts = torch.bincount(nearest, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = sums / counts.clamp_min(1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        farthest = distance.topk(min(len(empty), len(points))).indices
        centres[empty[: len(farthest)]] = points[farthest]
    return centres


def _assign(points: Tensor, centres: Tensor) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """Squared distance to the nearest centre of each point, and its index, computed in parts to bound memory."""
    parts = [_nearest(part, centres) for part in points.split(max(1, _MOST_DISTANCES // len(centres)))]
    return torch.cat([distance for distance, _ in parts]), torch.cat([number for _, number in parts])


def _nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    squared = points.square().sum(1, keepdim=True) - 2 * points @ centres.t() + centres.square().sum(1)
    nearest = squared.min(dim=1)
    return nearest.values, nearest.indices
