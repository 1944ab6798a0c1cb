"""Codebooks that live: unit vectors that follow the points assigned to them, and codes that nobody uses.

Every function is pure and takes the points of the whole step: with several processes, those gathered from all of them.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.rng import permutation


class Codebook(NamedTuple):
    """A codebook and what it remembers; all of it is state of the training.

    Attributes:
        codes: unit vectors.
        sizes: points a step that each code is given, averaged over steps.
        sums: sum of those points, averaged in the same way; `codes` are their directions.
        unused: steps since each code was last given a point.
    """

    codes: Float[Tensor, "V d"]
    sizes: Float[Tensor, "V"]
    sums: Float[Tensor, "V d"]
    unused: Int[Tensor, "V"]


def started(codes: Float[Tensor, "V d"]) -> Codebook:
    """A codebook at step 0; each code weighs as much as one point a step."""
    unit = F.normalize(codes, dim=-1)
    count = len(unit)
    return Codebook(unit, unit.new_ones(count), unit.clone(), torch.zeros(count, dtype=torch.int64, device=unit.device))


def nearest(points: Float[Tensor, "*B d"], codes: Float[Tensor, "V d"]) -> Int[Tensor, "*B"]:
    """The unit code nearest to each unit point: that of the greatest cosine."""
    return (points @ codes.t()).argmax(-1)


def followed(book: Codebook, points: Float[Tensor, "n d"], ids: Int[Tensor, "n"], decay: float) -> Codebook:
    """The codebook after a step: m ← γ·m + (1-γ)·(sum of a code's points), code = m / ‖m‖.

    A code without points stays where it is, also when its m has shrunk to nothing.

    Args:
        points: unit vectors.
        ids: the code that each was given.
        decay: γ in [0, 1).

    Reference: van den Oord et al. 2017, appendix A.1; unit codes as in ViT-VQGAN (Yu et al. 2022).
    Differs: no Laplace smoothing of the sizes; the direction of a sum does not depend on them.
    """
    counts = torch.bincount(ids, minlength=len(book.codes)).to(points.dtype)
    added = torch.zeros_like(book.sums).index_add_(0, ids, points)
    sums = decay * book.sums + (1 - decay) * added
    return Codebook(
        codes=torch.where(counts[:, None] > 0, F.normalize(sums, dim=-1), book.codes),
        sizes=decay * book.sizes + (1 - decay) * counts,
        sums=sums,
        unused=steps_unused(book.unused, ids),
    )


def steps_unused(unused: Int[Tensor, "V"], ids: Int[Tensor, "n"]) -> Int[Tensor, "V"]:
    """Steps since each code was last used, one step on."""
    return torch.where(torch.bincount(ids, minlength=len(unused)) > 0, 0, unused + 1)


def revived(book: Codebook, points: Float[Tensor, "n d"], step: int, dead_after: int) -> Codebook:
    """Codes that have had no point for `dead_after` steps move to points of this step.

    Which ones is a hash of the step: no two codes get the same point, as long as there are enough, and a step that is
    repeated chooses the same. A moved code weighs as much as one point a step.
    """
    dead = (book.unused >= dead_after).nonzero()[:, 0]
    if len(dead) == 0:
        return book
    order = torch.from_numpy(permutation(0, step, len(points))).to(points.device)
    taken = points[order[torch.arange(len(dead), device=points.device) % len(points)]]
    return Codebook(
        codes=book.codes.index_copy(0, dead, taken),
        sizes=book.sizes.index_fill(0, dead, 1.0),
        sums=book.sums.index_copy(0, dead, taken),
        unused=book.unused.index_fill(0, dead, 0),
    )


def drawn_codes(ids: Int[Tensor, "n"], step: int, most: int) -> Int[Tensor, "k"]:
    """At most `most` different codes out of those in use, frequent ones sooner; which ones is a hash of the step."""
    walk = ids.cpu().numpy()[permutation(0, step, len(ids))]
    _, met = np.unique(walk, return_index=True)
    return torch.from_numpy(walk[np.sort(met)[:most]]).to(ids.device)
