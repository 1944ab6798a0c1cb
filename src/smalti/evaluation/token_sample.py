"""The held-out images on which tokenizers are evaluated, and the baseline there: k-means on patches, without a network.

The sample is large enough, and the same for every run; the baseline has a codebook of the same size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from smalti.core.rng import Stream, fold, permutation
from smalti.data.datasets.dataset import ImageDataset, InMemoryDataset
from smalti.data.reading import even_sample, sample_squares
from smalti.functional.codebook import kmeans
from smalti.functional.patches import patchify, unpatchify, varied_patches
from smalti.models.vit import as_unit_range

SAMPLE_TOKENS = 200_000
"""Tokens of the sample on patches with more than one colour."""

_IMAGES = 2000
"""Images of a sample that is read for a look."""
_POINTS_A_CODE, _ITERATIONS = 4, 2
"""Greater values change the perplexity by a few per cent, and increase the time in proportion."""
_PATCHES = 2048
"""Patches per batch of distances to all centres."""


def sample_index(images: Tensor, stride: int, tokens: int = SAMPLE_TOKENS) -> Int[Tensor, "n"]:
    """Positions of images, drawn by a hash of them until `tokens` patches have more than one colour, in order.

    Where there are fewer such patches, all images are taken. The sample does not depend on the tokenizer, so all
    tokenizers with this stride are evaluated on the same images.

    Args:
        images: B C H W.
        stride: side of a patch in pixels.
    """
    varied = varied_patches(images, stride).sum(1).numpy()
    order = np.argsort(fold(0, np.arange(len(images)), Stream.SPLIT), kind="stable")
    enough = int(np.searchsorted(np.cumsum(varied[order]), tokens)) + 1
    return torch.from_numpy(np.sort(order[:enough]))


def some_images(images: ImageDataset, side: int, count: int = _IMAGES) -> UInt8[Tensor, "B C H W"]:
    """At most `count` images, evenly spread; streamed ones as squares of `side` pixels."""
    if images.pixels is not None:
        return images.pixels[even_sample(len(images), count)]
    return sample_squares(images, count, side)


def some_labels(images: InMemoryDataset) -> Int[Tensor, "B"]:
    """The classes of `some_images` in memory, -1 where there is none."""
    return images.labels[even_sample(len(images), _IMAGES)]


@dataclass
class NearestPatch:
    """A tokenizer whose token is the nearest of V centres, by squared distance of pixels in [0, 1]."""

    vocab_size: int
    stride: int
    centres: Float[Tensor, "V P"]

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The nearest centre of every patch, in [0, V)."""
        patches = patchify(as_unit_range(images), self.stride).flatten(0, 1)
        half_squares = 0.5 * self.centres.square().sum(1)
        near = [
            torch.addmm(half_squares, part, self.centres.t(), alpha=-1).argmin(1) for part in patches.split(_PATCHES)
        ]
        return torch.cat(near).view(len(images), images.shape[-2] // self.stride, images.shape[-1] // self.stride)

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The centres as patches of the images, in [0, 1]."""
        return unpatchify(self.centres[ids.flatten(1)], self.stride, (ids.shape[1], ids.shape[2])).clamp(0, 1)


def fit_kmeans_baseline(images: Tensor, vocab_size: int, stride: int) -> NearestPatch | None:
    """k-means on patches with more than one colour; None where there are no such patches.

    The cost is bounded: two rounds on four patches per code, drawn by a hash. With V = 8192 it takes seconds on two
    cores.

    Args:
        images: training images, B C H W, uint8 or float in [0, 1].
        stride: side of a patch in pixels.
    """
    patches = torch.cat([patchify(part, stride)[varied_patches(part, stride)] for part in images.split(500)])
    if len(patches) == 0:
        return None
    drawn = torch.from_numpy(permutation(0, 0, len(patches)))[: _POINTS_A_CODE * vocab_size]
    points = as_unit_range(patches[drawn])
    return NearestPatch(vocab_size, stride, kmeans(points, vocab_size, torch.arange(len(points)), _ITERATIONS))
