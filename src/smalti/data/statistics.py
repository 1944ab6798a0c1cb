"""Mean and standard deviation of pixels: conventions, or measured on the images of a run."""

from typing import Literal, TypeAlias

import torch

from smalti.core.errors import UsageError
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.reading import some_squares

Normalisation: TypeAlias = Literal["half", "imagenet", "auto"]
"""0.5 for everything (the released code's default), ImageNet's, or as measured."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MOST_IMAGES = 10_000
_LEAST_STD = 1e-3

Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Means and standard deviations, a value a channel, of pixels in [0, 1]."""


def statistics(kind: Normalisation, images: ImageDataset, channels: int, side: int) -> Statistics:
    """Mean and standard deviation of every channel.

    Args:
        images: those to learn from; at most 10 000 of them are looked at.
        side: pixels; the centre square is scaled to this first.

    Raises:
        UsageError: ImageNet's statistics for images that have not three channels.
    """
    if kind == "half":
        return (0.5,) * channels, (0.5,) * channels
    if kind == "imagenet":
        if channels != 3:
            raise UsageError(f"ImageNet's statistics for {channels} channel", fix="use --normalisation auto or half")
        return _IMAGENET
    return measured(some_squares(images, _MOST_IMAGES, side))


def measured(images: torch.Tensor) -> Statistics:
    """Of uint8 images, B C H W; four digits, so that the last bits of a sum do not matter."""
    total, squares, count = torch.zeros(images.shape[1]).double(), torch.zeros(images.shape[1]).double(), 0
    for part in images.split(256):
        pixels = part.double() / 255
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
        count += pixels[:, 0].numel()
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(_LEAST_STD)
    return tuple(round(value, 4) for value in mean.tolist()), tuple(round(value, 4) for value in std.tolist())
