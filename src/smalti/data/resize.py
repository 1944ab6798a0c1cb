"""Pixels in another size, with any number of channels."""

from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Part: TypeAlias = tuple[float | int, float | int, float | int, float | int]
"""Left, top, right and bottom of a part of an image, in pixels."""


def resized(
    pixels: UInt8[np.ndarray, "H W C"],
    size: tuple[int, int],
    filter: Image.Resampling,
    part: Part | None = None,
    reducing_gap: float | None = None,
) -> UInt8[np.ndarray, "h w C"]:
    """An image, or a part of it, in the size (h, w), as Pillow resizes it; what is neither grey nor RGB by channel.

    Pillow would take a fourth channel for transparency, and has no images of more.
    """
    channels = pixels.shape[2]
    if channels not in (1, 3):
        each = [resized(pixels[..., n : n + 1], size, filter, part, reducing_gap) for n in range(channels)]
        return np.concatenate(each, axis=2)
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return np.array(picture.resize(size[::-1], filter, part, reducing_gap)).reshape(*size, channels)
