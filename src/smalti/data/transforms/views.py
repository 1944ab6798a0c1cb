"""Random view parameters of a sample: crop box, mirror and colour jitter. Drawn once, shared by both views."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from smalti.core.config import require, setting
from smalti.core.rng import Keys, Stream, fold, fold_one, uniform, uniform_one

_ATTEMPTS = 10

Box: TypeAlias = tuple[float, float, float, float]
"""Top, left, height and width as shares of the image height and width, in [0, 1]."""

_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

Size: TypeAlias = tuple[int, int]
"""Height and width of the view in pixels; only `SquareCrop` depends on it."""

NO_SIZE: Size = (0, 0)

Fallback: TypeAlias = Literal["whole", "centre"]
"""What a random crop shows where ten attempts do not fit into the image."""


@dataclass(frozen=True)
class Crop:
    """Crops of a batch.

    Attributes:
        box: (B, 4), top, left, height and width as shares of the image, in [0, 1].
        flip: (B,), whether the crop is mirrored.
    """

    box: NDArray[np.float64]
    flip: NDArray[np.bool_]


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, of random shape, mirrored half of the time.

    Area and aspect ratio are drawn up to ten times until the crop fits. Where none does, as often in wide images (12 %
    of crops at 4:1, 59 % at 8:1 with the default ranges), `fallback` decides.

    Reference: BEiT §2.5 (augmentation), Szegedy et al. 2015; ranges and the central fallback as in the released code.
    """

    scale: tuple[float, float] = setting((0.08, 1.0), "share of the area", "released code, transforms.py")
    ratio: tuple[float, float] = setting((3 / 4, 4 / 3), "width / height", "released code, transforms.py")
    flip: float = setting(0.5, "probability", "released code, datasets.py")
    fallback: Fallback = setting(
        "whole", "if no crop fits: the whole image, or its centre in the nearest ratio", "released code: centre"
    )

    def __post_init__(self) -> None:
        require(0 < self.scale[0] <= self.scale[1] <= 1, f"a crop scale of {self.scale}", "use 0 < low <= high <= 1")
        require(0 < self.ratio[0] <= self.ratio[1], f"a crop ratio of {self.ratio}", "use 0 < low <= high")
        require(0 <= self.flip <= 1, f"a flip probability of {self.flip}", "use 0 to 1")

    def __call__(self, keys: Keys, height: int, width: int, size: Size = NO_SIZE) -> Crop:
        """Draw a crop for each of the keys (B,), uint64, of images of `height` x `width` pixels."""
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
        chosen = np.where(fits.any(axis=1)[:, None], chosen, np.array(self._otherwise(height, width)))
        return Crop(chosen, self.flips(keys))

    def one(self, key: int, height: int, width: int, size: Size = NO_SIZE) -> Box:
        """The same box for one key, up to rounding, without the overhead of small arrays."""
        key, (low, high) = fold_one(key, Stream.CROP), (math.log(bound) for bound in self.ratio)
        for attempt in range(_ATTEMPTS):
            share, shape, down, right = (uniform_one(key, 4 * attempt + draw) for draw in range(4))
            area = height * width * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + shape * (high - low))
            tall, wide = math.sqrt(area / aspect) / height, math.sqrt(area * aspect) / width
            if tall <= 1 and wide <= 1:
                return down * (1 - tall), right * (1 - wide), tall, wide
        return self._otherwise(height, width)

    def _otherwise(self, height: int, width: int) -> Box:
        """The box of an image for which no crop fits."""
        if self.fallback == "whole":
            return _WHOLE
        low, high = self.ratio
        tall, wide = min(1.0, width / (low * height)), min(1.0, high * height / width)
        return (1 - tall) / 2, (1 - wide) / 2, tall, wide

    def flips(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of the samples are mirrored: (B,)."""
        return uniform(fold(keys, Stream.FLIP), 1)[:, 0] < self.flip


@dataclass(frozen=True)
class SquareCrop:
    """A square out of a random one of the largest squares of the image, mirrored half of the time.

    The largest square is thought of as scaled to a random side t, and the crop has the size of the view in it: a share
    of size / t of its side. A square smaller than t is not enlarged, so a small image is shown nearly whole.

    Reference: DALL-E, appendix A.2 and the code of its preprocessing. Differs: the crop is scaled once, by bicubic
    interpolation, and not the square by area interpolation.
    """

    scaled: tuple[float, float] = setting((9 / 8, 12 / 8), "t / size of the view, uniform", "DALL-E, appendix A.2")
    flip: float = setting(0.5, "probability", "DALL-E, appendix A.2")

    def __post_init__(self) -> None:
        require(1 <= self.scaled[0] <= self.scaled[1], f"a crop scaled by {self.scaled}", "use 1 <= low <= high")
        require(0 <= self.flip <= 1, f"a flip probability of {self.flip}", "use 0 to 1")

    def __call__(self, keys: Keys, height: int, width: int, size: Size) -> Crop:
        """Draw a crop for each of the keys (B,), uint64, of images of `height` x `width` pixels.

        Args:
            size: of the view, in pixels; of a view that is no square the smaller side counts.
        """
        scale, place, down, right = uniform(fold(keys, Stream.CROP), 4).T
        square, target = min(height, width), min(size)
        low, high = (min(square, round(bound * target)) for bound in self.scaled)
        side = square * np.minimum(1.0, target / np.floor(low + scale * (high - low + 1)))
        top = (height - square) * place + (square - side) * down
        left = (width - square) * place + (square - side) * right
        return Crop(np.stack([top / height, left / width, side / height, side / width], -1), self.flips(keys))

    def one(self, key: int, height: int, width: int, size: Size) -> Box:
        top, left, tall, wide = self(np.array([key], np.uint64), height, width, size).box[0].tolist()
        return top, left, tall, wide

    def flips(self, keys: Keys) -> NDArray[np.bool_]:
        return uniform(fold(keys, Stream.FLIP), 1)[:, 0] < self.flip


@dataclass(frozen=True)
class WholeImage:
    """The whole image, not mirrored: for evaluation."""

    def __call__(self, keys: Keys, height: int, width: int, size: Size = NO_SIZE) -> Crop:
        return Crop(np.tile(_WHOLE, (len(keys), 1)), self.flips(keys))

    def one(self, key: int, height: int, width: int, size: Size = NO_SIZE) -> Box:
        return _WHOLE

    def flips(self, keys: Keys) -> NDArray[np.bool_]:
        return np.zeros(len(keys), np.bool_)


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast and saturation: each a factor drawn from [1 - strength, 1 + strength].

    Differs: the released code takes three steps in a random order, each rounded and clamped to 8 bits. Without the
    clamps the three commute and are one matrix (`data/transforms/augment.py`), so there is no order to draw.
    """

    brightness: float = setting(0.4, "strength; 0: none", "released code, datasets.py")
    contrast: float = setting(0.4, "strength; 0: none", "released code, datasets.py")
    saturation: float = setting(0.4, "strength; 0: none", "released code, datasets.py")
    before_crop: bool = setting(
        False, "apply it to the whole image, as the released code does: slower, nearly the same"
    )

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            require(0 <= getattr(self, name) <= 1, f"a jitter {name} of {getattr(self, name)}", "use 0 to 1")

    @property
    def strengths(self) -> tuple[float, float, float]:
        return self.brightness, self.contrast, self.saturation

    def __call__(self, keys: Keys) -> NDArray[np.float64]:
        """Factors of brightness, contrast and saturation for each key: (B, 3), float64 in [0, 2]."""
        return 1 + np.array(self.strengths) * (2 * uniform(fold(keys, Stream.JITTER), 3) - 1)


NO_JITTER = ColorJitter(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class TwoViews:
    """The patch view and the token view of one crop.

    Attributes:
        size: height and width of the patch view in pixels (bicubic).
        token_size: height and width of the token view (Lanczos); None where the tokenizer reads the patch view.
        full_decode: JPEGs are decoded at full size, and not at the fraction that suffices for the crop.
    """

    crop: RandomResizedCrop | SquareCrop | WholeImage
    size: tuple[int, int]
    token_size: tuple[int, int] | None = None
    jitter: ColorJitter = NO_JITTER
    full_decode: bool = False

    @property
    def jitter_when(self) -> Literal["never", "before_crop", "after_crop"]:
        """When colour jitter is applied."""
        if not any(self.jitter.strengths):
            return "never"
        return "before_crop" if self.jitter.before_crop else "after_crop"
