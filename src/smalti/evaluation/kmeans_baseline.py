"""k-means on patches as a tokenizer: what a codebook of the same size does without any network."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.rng import permutation
from smalti.evaluation.token_sample import constant
from smalti.functional.kmeans import kmeans
from smalti.functional.patches import patchify, unpatchify
from smalti.models.vit import as_unit_range

_POINTS_A_CODE, _ITERATIONS = 4, 2
"""More of either moves the perplexity by a few per cent and costs as many times the seconds."""
_PATCHES = 2048
"""Patches that are compared with all centres at a time."""


@dataclass
class NearestPatch:
    """Each patch is written as the nearest of V centres, by squared distance of pixels in [0, 1]."""

    vocab_size: int
    stride: int
    centres: Float[Tensor, "V P"]

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The nearest centre of every patch."""
        patches = patchify(as_unit_range(images), self.stride).flatten(0, 1)
        half_squares = 0.5 * self.centres.square().sum(1)
        near = [
            torch.addmm(half_squares, part, self.centres.t(), alpha=-1).argmin(1) for part in patches.split(_PATCHES)
        ]
        return torch.cat(near).view(len(images), images.shape[-2] // self.stride, images.shape[-1] // self.stride)

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The centres side by side."""
        return unpatchify(self.centres[ids.flatten(1)], self.stride, (ids.shape[1], ids.shape[2])).clamp(0, 1)


def fit_kmeans_baseline(images: Tensor, vocab_size: int, stride: int) -> NearestPatch | None:
    """k-means on patches of training images that are not constant; None where there are none.

    Bounded in cost: two rounds on four patches a code, drawn by a hash. With V = 8192 that is seconds on two cores.
    """
    patches = torch.cat([patchify(part, stride)[~constant(part, stride)] for part in images.split(500)])
    if len(patches) == 0:
        return None
    drawn = torch.from_numpy(permutation(0, 0, len(patches)))[: _POINTS_A_CODE * vocab_size]
    points = as_unit_range(patches[drawn])
    return NearestPatch(vocab_size, stride, kmeans(points, vocab_size, torch.arange(len(points)), _ITERATIONS))
