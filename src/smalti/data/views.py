"""Which part of an image a sample shows: drawn once, applied to the patch view and the token view alike."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smalti.core.config import require, setting
from smalti.core.rng import Keys, Stream, fold, uniform

_ATTEMPTS = 10


@dataclass(frozen=True)
class Crop:
    """Where to look: `box` is B x 4 (top, left, height, width) as shares of the image, `flip` mirrors it."""

    box: NDArray[np.float64]
    flip: NDArray[np.bool_]


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, of random shape, mirrored half of the time.

    Area and aspect ratio are drawn up to ten times until the crop fits; else the whole image is shown.

    Reference: BEiT §2.4 (augmentation), Szegedy et al. 2015; ranges as in the released code.
    """

    scale: tuple[float, float] = setting((0.08, 1.0), "share of the area", "released code, transforms.py")
    ratio: tuple[float, float] = setting((3 / 4, 4 / 3), "width / height", "released code, transforms.py")
    flip: float = setting(0.5, "probability", "released code, datasets.py")

    def __post_init__(self) -> None:
        require(0 < self.scale[0] <= self.scale[1] <= 1, f"a crop scale of {self.scale}", "use 0 < low <= high <= 1")
        require(0 < self.ratio[0] <= self.ratio[1], f"a crop ratio of {self.ratio}", "use 0 < low <= high")
        require(0 <= self.flip <= 1, f"a flip probability of {self.flip}", "use 0 to 1")

    def __call__(self, keys: Keys, height: int, width: int) -> Crop:
        """Draw a crop for each key, of images of `height` x `width` pixels."""
        draws = uniform(fold(keys, Stream.CROP), 4 * _ATTEMPTS).reshape(len(keys), _ATTEMPTS, 4)
        area = height * width * (self.scale[0] + draws[..., 0] * (self.scale[1] - self.scale[0]))
        low, high = np.log(self.ratio)
        aspect = np.exp(low + draws[..., 1] * (high - low))
        box_width, box_height = np.sqrt(area * aspect), np.sqrt(area / aspect)
        fits = (box_width <= width) & (box_height <= height)
        first = fits.argmax(axis=1)[:, None, None]
        boxes = np.stack(
            [
                draws[..., 2] * (1 - box_height / height),
                draws[..., 3] * (1 - box_width / width),
                box_height / height,
                box_width / width,
            ],
            axis=-1,
        )
        chosen = np.take_along_axis(boxes, first, axis=1)[:, 0]
        whole = np.array([0.0, 0.0, 1.0, 1.0])
        flips = uniform(fold(keys, Stream.FLIP), 1)[:, 0] < self.flip
        return Crop(np.where(fits.any(axis=1)[:, None], chosen, whole), flips)


@dataclass(frozen=True)
class WholeImage:
    """The image as it is: for evaluation."""

    def __call__(self, keys: Keys, height: int, width: int) -> Crop:
        return Crop(np.tile([0.0, 0.0, 1.0, 1.0], (len(keys), 1)), np.zeros(len(keys), np.bool_))
