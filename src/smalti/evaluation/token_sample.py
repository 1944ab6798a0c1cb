"""The images that a tokenizer is measured on: enough for steady figures, the same for every run."""

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from smalti.core.rng import Stream, fold
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.memory import InMemoryDataset
from smalti.data.reading import even_sample, some_squares
from smalti.functional.patches import constant_patches

WINDOW = 200_000
"""Tokens on patches that are not constant."""

_IMAGES = 2000
"""Images of a sample that is read for a look."""


def token_sample(images: Tensor, stride: int, tokens: int = WINDOW) -> Tensor:
    """Images, B C H W, chosen by a hash of their position until they have `tokens` patches that are not constant.

    All of them where there are fewer. The choice depends on the images alone, so every tokenizer of this stride is
    measured on the same ones; they keep their order.
    """
    varied = (~constant(images, stride)).sum(1).numpy()
    order = np.argsort(fold(0, np.arange(len(images)), Stream.SPLIT), kind="stable")
    enough = int(np.searchsorted(np.cumsum(varied[order]), tokens)) + 1
    return images if enough >= len(images) else images[torch.from_numpy(np.sort(order[:enough]))]


def constant(images: Tensor, stride: int) -> Bool[Tensor, "B N"]:
    """`constant_patches` of any number of images, in parts."""
    return torch.cat([constant_patches(part, stride) for part in images.split(500)])


def some_images(images: InMemoryDataset | ImageDataset, side: int, count: int = _IMAGES) -> UInt8[Tensor, "B C H W"]:
    """At most `count` images, evenly spread; streamed ones as squares of `side` pixels."""
    if isinstance(images, InMemoryDataset):
        return images.select(np.array(even_sample(len(images), count))).images
    return some_squares(images, count, side)
