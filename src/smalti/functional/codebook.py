"""Learned codebooks of unit vectors, updated by exponential moving averages (EMA) of the points assigned to each code.

Every function is pure. Points are those of the whole step; in a distributed run they are gathered from all ranks.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.rng import permutation


class Codebook(NamedTuple):
    """A codebook and the state of its EMA, all of which a checkpoint contains.

    Attributes:
        codes: unit vectors, V x d.
        sizes: EMA of the number of points assigned to each code per step.
        sums: EMA of the sum of those points, m, V x d; `codes` are their directions.
        unused: steps since a point was last assigned to each code.
    """

    codes: Float[Tensor, "V d"]
    sizes: Float[Tensor, "V"]
    sums: Float[Tensor, "V d"]
    unused: Int[Tensor, "V"]


def started(codes: Float[Tensor, "V d"]) -> Codebook:
    """The codebook at step 0; each code has the weight of one point per step."""
    unit = F.normalize(codes, dim=-1)
    count = len(unit)
    return Codebook(unit, unit.new_ones(count), unit.clone(), torch.zeros(count, dtype=torch.int64, device=unit.device))


def nearest(points: Float[Tensor, "*B d"], codes: Float[Tensor, "V d"]) -> Int[Tensor, "*B"]:
    """The index in [0, V) of the code with the greatest cosine similarity to each point; all are unit vectors."""
    return greatest(points @ codes.t())


def greatest(scores: Float[Tensor, "*B V"]) -> Int[Tensor, "*B"]:
    """The index of the greatest score, as `argmax` says, in a third of the time that torch takes for it on a CPU."""
    return scores.max(-1).indices


def followed(book: Codebook, points: Float[Tensor, "n d"], ids: Int[Tensor, "n"], decay: float) -> Codebook:
    """The codebook after a step: m ← γ·m + (1-γ)·(sum of a code's points), code = m / ‖m‖.

    A code without points keeps its direction, even when its m has decayed to zero.

    Args:
        book: the codebook before the step.
        points: unit vectors.
        ids: the code assigned to each point, in [0, V).
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
    """The counters of steps without use after one more step, which used the codes `ids`."""
    return torch.where(torch.bincount(ids, minlength=len(unused)) > 0, 0, unused + 1)


def revived(book: Codebook, points: Float[Tensor, "n d"], step: int, dead_after: int) -> Codebook:
    """Move dead codes, those without points for `dead_after` steps, to points of this step.

    A hash of `step` chooses the points, so a repeated step chooses the same ones; they are different points as long as
    there are enough. A moved code has the weight of one point per step.
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
    """At most `most` different codes that occur in `ids`, drawn by a hash of `step`, frequent codes more likely."""
    walk = ids.cpu().numpy()[permutation(0, step, len(ids))]
    _, met = np.unique(walk, return_index=True)
    return torch.from_numpy(walk[np.sort(met)[:most]]).to(ids.device)
