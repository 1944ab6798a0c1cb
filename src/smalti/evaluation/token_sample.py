"""The sample of held-out images on which tokenizers are evaluated: large enough, and the same for every run."""

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from smalti.core.rng import Stream, fold
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.reading import even_sample, some_squares
from smalti.functional.patches import constant_patches

SAMPLE_TOKENS = 200_000
"""Tokens of the sample on patches with more than one colour."""

_IMAGES = 2000
"""Images of a sample that is read for a look."""


def token_sample(images: Tensor, stride: int, tokens: int = SAMPLE_TOKENS) -> Tensor:
    """Images drawn by a hash of their position until they have `tokens` patches with more than one colour, in order.

    Where there are fewer such patches, all images are returned. The sample does not depend on the tokenizer, so all
    tokenizers with this stride are evaluated on the same images.

    Args:
        images: B C H W.
        stride: side of a patch in pixels.
        tokens: number of patches to have.
    """
    varied = (~constant(images, stride)).sum(1).numpy()
    order = np.argsort(fold(0, np.arange(len(images)), Stream.SPLIT), kind="stable")
    enough = int(np.searchsorted(np.cumsum(varied[order]), tokens)) + 1
    return images if enough >= len(images) else images[torch.from_numpy(np.sort(order[:enough]))]


def constant(images: Tensor, stride: int) -> Bool[Tensor, "B N"]:
    """`constant_patches` in batches, to bound memory."""
    return torch.cat([constant_patches(part, stride) for part in images.split(500)])


def some_images(images: ImageDataset, side: int, count: int = _IMAGES) -> UInt8[Tensor, "B C H W"]:
    """At most `count` images, evenly spread; streamed ones as squares of `side` pixels."""
    if images.pixels is not None:
        return images.pixels[even_sample(len(images), count)]
    return some_squares(images, count, side)
