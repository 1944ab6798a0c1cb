"""Codebooks: their size, their initialisation by k-means, their update by EMA, and FSQ, which has no learned codebook.

Learned codes are unit vectors, updated by exponential moving averages (EMA) of their points: those of the whole step,
which in a distributed run are gathered from all ranks. Every function is pure.

Finite scalar quantisation (FSQ) rounds each of d numbers to one of a few levels. Numbers are scaled to [-1, 1]: a
dimension with L levels has the values (k - ⌊L/2⌋) / ⌊L/2⌋ for k = 0 ... L - 1.

Reference: Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2023, §3.1 and appendix A.1.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.config import require
from smalti.core.rng import permutation

MIN_DEFAULT_VOCAB, MAX_DEFAULT_VOCAB = 64, 8192
_TOKENS_PER_CODE = 500
"""Visual tokens of the training images per code, each image counted once."""
_MAX_DISTANCES = 1 << 21
"""Distances at a time, 8 MB: as many as a cache holds take a third of the time that 128 MB take."""
_MARGIN = 1e-3
"""Distance that numbers keep from the outermost rounding boundaries."""


def default_vocab_size(num_images: int, tokens_an_image: int) -> int:
    """The greatest power of two that leaves 500 visual tokens of the training images per code.

    Args:
        num_images: training images.
        tokens_an_image: N, visual tokens per image.

    Returns:
        V, in [64, 8192].

    Example:
        >>> default_vocab_size(10_000, 64)
        1024

    Reference: BEiT §2.1.2 uses 8192, with 250 million images.
    """
    require(num_images >= 1 and tokens_an_image >= 1, f"{num_images} images of {tokens_an_image} tokens")
    codes = num_images * tokens_an_image // _TOKENS_PER_CODE
    return min(max(1 << codes.bit_length() >> 1, MIN_DEFAULT_VOCAB), MAX_DEFAULT_VOCAB)


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
    parts = [_to_centres(part, centres) for part in points.split(max(1, _MAX_DISTANCES // len(centres)))]
    return torch.cat([distance for distance, _ in parts]), torch.cat([number for _, number in parts])


def _to_centres(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    nearest = torch.addmm(centres.square().sum(1), points, centres.t(), alpha=-2).min(dim=1)
    return nearest.values + points.square().sum(1), nearest.indices


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


def new_codebook(codes: Float[Tensor, "V d"]) -> Codebook:
    """A codebook at step 0; each code has the weight of one point per step."""
    unit = F.normalize(codes, dim=-1)
    count = len(unit)
    return Codebook(unit, unit.new_ones(count), unit.clone(), torch.zeros(count, dtype=torch.int64, device=unit.device))


def nearest(points: Float[Tensor, "*B d"], codes: Float[Tensor, "V d"]) -> Int[Tensor, "*B"]:
    """The index in [0, V) of the code with the greatest cosine similarity to each point; all are unit vectors."""
    return fast_argmax(points @ codes.t())


def nearest_centre(points: Float[Tensor, "*B d"], centres: Float[Tensor, "V d"]) -> Int[Tensor, "*B"]:
    """The index of the centre nearest to each point, in [0, V); among unit centres that of greatest cosine."""
    return fast_argmax(F.linear(points, centres, -0.5 * centres.square().sum(1)))


def positions_per_chunk(vocab_size: int, device: torch.device, on_cpu: int = 256) -> int:
    """The number of positions whose scores of all codes are computed at a time, which bounds memory.

    On a CPU they are to fit into its cache (`on_cpu`); elsewhere they are 2^25 numbers, which keep a GPU busy.
    """
    return on_cpu if device.type == "cpu" else max(1, (1 << 25) // vocab_size)


def fast_argmax(scores: Float[Tensor, "*B V"]) -> Int[Tensor, "*B"]:
    """The index of the greatest score, as `argmax` says, in a third of the time that torch takes for it on a CPU."""
    return scores.max(-1).indices


def ema_update(codebook: Codebook, points: Float[Tensor, "n d"], ids: Int[Tensor, "n"], decay: float) -> Codebook:
    """The codebook after a step: m ← γ·m + (1-γ)·(sum of a code's points), code = m / ‖m‖.

    A code without points keeps its direction, even when its m has decayed to zero.

    Args:
        codebook: the codebook before the step.
        points: unit vectors.
        ids: the code assigned to each point, in [0, V).
        decay: γ in [0, 1).

    Reference: van den Oord et al. 2017, appendix A.1; unit codes as in ViT-VQGAN (Yu et al. 2022).
    Differs: no Laplace smoothing of the sizes; the direction of a sum does not depend on them.
    """
    counts = torch.bincount(ids, minlength=len(codebook.codes)).to(points.dtype)
    added = torch.zeros_like(codebook.sums).index_add_(0, ids, points)
    sums = decay * codebook.sums + (1 - decay) * added
    return Codebook(
        codes=torch.where(counts[:, None] > 0, F.normalize(sums, dim=-1), codebook.codes),
        sizes=decay * codebook.sizes + (1 - decay) * counts,
        sums=sums,
        unused=steps_unused(codebook.unused, ids),
    )


def ema_update_means(
    means: Float[Tensor, "V P"],
    sizes: Float[Tensor, "V"],
    values: Float[Tensor, "n P"],
    ids: Int[Tensor, "n"],
    decay: float,
) -> Float[Tensor, "V P"]:
    """The mean of what was assigned to each code, after a step, with the weights that `ema_update` gives to points.

    A code without points keeps its mean.

    Args:
        means: before the step.
        sizes: of the codebook before the step.
        values: what belongs to each point, such as the pixels of its patch.
        ids: the code assigned to each, in [0, V).
        decay: γ in [0, 1).
    """
    counts = torch.bincount(ids, minlength=len(means)).to(values.dtype)
    added = torch.zeros_like(means).index_add_(0, ids, values)
    weights = decay * sizes + (1 - decay) * counts
    moved = (decay * sizes[:, None] * means + (1 - decay) * added) / weights.clamp_min(1e-12)[:, None]
    return torch.where(counts[:, None] > 0, moved, means)


def steps_unused(unused: Int[Tensor, "V"], ids: Int[Tensor, "n"]) -> Int[Tensor, "V"]:
    """The counters of steps without use after one more step, which used the codes `ids`."""
    return torch.where(torch.bincount(ids, minlength=len(unused)) > 0, 0, unused + 1)


def replacements(
    unused: Int[Tensor, "V"], num_points: int, step: int, dead_after: int
) -> tuple[Int[Tensor, "dead"], Int[Tensor, "dead"]]:
    """The dead codes, those without points for `dead_after` steps, and for each the point that it moves to.

    A hash of `step` chooses the points, so a repeated step chooses the same ones; they are different points as long as
    there are enough.
    """
    dead = (unused >= dead_after).nonzero()[:, 0]
    if len(dead) == 0:
        return dead, dead
    order = torch.from_numpy(permutation(0, step, num_points)).to(unused.device)
    return dead, order[torch.arange(len(dead), device=unused.device) % num_points]


def replace_dead_codes(codebook: Codebook, points: Float[Tensor, "n d"], step: int, dead_after: int) -> Codebook:
    """Move dead codes to points of this step (`replacements`). A moved code has the weight of one point per step."""
    dead, chosen = replacements(codebook.unused, len(points), step, dead_after)
    if len(dead) == 0:
        return codebook
    return Codebook(
        codes=codebook.codes.index_copy(0, dead, points[chosen]),
        sizes=codebook.sizes.index_fill(0, dead, 1.0),
        sums=codebook.sums.index_copy(0, dead, points[chosen]),
        unused=codebook.unused.index_fill(0, dead, 0),
    )


def sample_codes(ids: Int[Tensor, "n"], step: int, count: int) -> Int[Tensor, "k"]:
    """At most `count` different codes that occur in `ids`, drawn by a hash of `step`, frequent codes more likely."""
    walk = ids.cpu().numpy()[permutation(0, step, len(ids))]
    _, met = np.unique(walk, return_index=True)
    return torch.from_numpy(walk[np.sort(met)[:count]]).to(ids.device)


def fsq_bound(x: Float[Tensor, "*B d"], levels: Int[Tensor, "d"]) -> Float[Tensor, "*B d"]:
    """Squash numbers by tanh into the range that rounds to exactly L values in each dimension.

    With an even L the range is half a level off centre, so that zero is still one of the values and maps to itself.

    Args:
        x: any numbers.
        levels: L of each of the d dimensions, 3 or more, on the device of `x`.
    """
    count = levels.to(x.dtype)
    half = (count - 1) * (1 - _MARGIN) / 2
    offset = 0.5 * (count % 2 == 0)
    return (torch.tanh(x + torch.atanh(offset / half)) * half - offset) / (count // 2)


def fsq_round(x: Float[Tensor, "*B d"], levels: Int[Tensor, "d"]) -> Float[Tensor, "*B d"]:
    """The nearest level of each number in the range of `fsq_bound`."""
    half = levels.to(x.dtype) // 2
    return torch.round(x * half) / half


def fsq_ids(values: Float[Tensor, "*B d"], levels: Int[Tensor, "d"]) -> Int[Tensor, "*B"]:
    """The index of each code, in [0, product of `levels`); the first dimension varies fastest."""
    digits = torch.round(values * (levels // 2)).long() + levels // 2
    ids = torch.zeros_like(digits[..., 0])
    for digit, level in zip(reversed(digits.unbind(-1)), reversed(levels.unbind()), strict=True):
        ids = ids * level + digit
    return ids


def fsq_values(ids: Int[Tensor, "*B"], levels: Int[Tensor, "d"]) -> Float[Tensor, "*B d"]:
    """The inverse of `fsq_ids`."""
    digits = list[Tensor]()
    for level in levels.unbind():
        digits.append(ids % level)
        ids = ids // level
    return (torch.stack(digits, -1) - levels // 2).float() / (levels // 2)
