"""Lloyd's k-means: where a codebook may start."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MOST_DISTANCES = 1 << 25
"""Kept at a time: 128 MB."""


def kmeans(points: Float[Tensor, "n P"], k: int, order: Int[Tensor, "n"], iterations: int = 10) -> Float[Tensor, "k P"]:
    """Centres of `k` clusters.

    Args:
        points: at least one; where there are fewer distinct points than k, centres repeat.
        k: number of centres.
        order: a permutation of the points; the first k of it are the first centres. Randomness is an input.
        iterations: rounds of assigning and averaging. A centre without points moves to the point that lies farthest
            from its own centre (the farthest k points at most, one for each empty centre).
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
    """Squared distance to, and number of, the nearest centre of each point; in parts, where there are many of both."""
    parts = [_nearest(part, centres) for part in points.split(max(1, _MOST_DISTANCES // len(centres)))]
    return torch.cat([distance for distance, _ in parts]), torch.cat([number for _, number in parts])


def _nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    squared = points.square().sum(1, keepdim=True) - 2 * points @ centres.t() + centres.square().sum(1)
    nearest = squared.min(dim=1)
    return nearest.values, nearest.indices
