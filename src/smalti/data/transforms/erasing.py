"""Random erasing: noise in the place of a part of some images."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from smalti.core.config import require, setting
from smalti.core.contracts import Batch
from smalti.core.rng import Keys, Stream, fold, uniform
from smalti.data.transforms.batch_transforms import keys_of
from smalti.functional.noise import uniform_noise
from smalti.models.vit import as_unit_range

_ATTEMPTS = 10
_NOISE = 2
"""The stream of a key's noise: 0 are Gumbel draws, 1 is drop path."""


@dataclass(frozen=True)
class Erasing:
    """A rectangle of noise, a draw for each pixel and channel, in some of the images.

    Area and shape are drawn up to ten times until the rectangle fits; else the image stays.

    Reference: Zhong et al. 2020; timm, data/random_erasing.py, mode `pixel`.
    Differs: noise is uniform in [0, 1]; timm's is normal with the deviation of normalised pixels, which no image has.
    """

    probability: float = setting(0.0, "that an image has one; 0: none", "released code: 0.25")
    area: tuple[float, float] = setting((0.02, 1 / 3), "share of the image", "timm")
    ratio: tuple[float, float] = setting((0.3, 1 / 0.3), "height / width", "timm")

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, f"a probability of erasing of {self.probability}", "use 0 to 1")
        require(0 < self.area[0] <= self.area[1] < 1, f"an erased area of {self.area}", "use 0 < low <= high < 1")
        require(0 < self.ratio[0] <= self.ratio[1], f"an erased ratio of {self.ratio}", "use 0 < low <= high")

    def __call__(self, batch: Batch) -> Batch:
        """The batch with changed images, float in [0, 1]."""
        boxes = self.boxes(keys_of(batch), *batch.image.shape[-2:])
        rows = torch.from_numpy(np.flatnonzero(boxes[:, 2] > 0)).to(batch.image.device)
        if len(rows) == 0:
            return batch
        images = as_unit_range(batch.image).clone()
        some = images[rows]
        top, left, height, width = torch.from_numpy(boxes).to(rows.device)[rows].T[..., None, None]
        down = torch.arange(some.shape[-2], device=rows.device)[:, None]
        right = torch.arange(some.shape[-1], device=rows.device)
        inside = (down >= top) & (down < top + height) & (right >= left) & (right < left + width)
        noise = uniform_noise(batch.key[rows], some[0].numel(), _NOISE).reshape(some.shape)
        images[rows] = torch.where(inside[:, None], noise, some)
        return replace(batch, image=images)

    def boxes(self, keys: Keys, height: int, width: int) -> NDArray[np.int64]:
        """Top, left, height and width in pixels for each key; all 0 where nothing is erased."""
        keys = fold(keys, Stream.ERASE)
        draws = uniform(keys, 4 * _ATTEMPTS).reshape(len(keys), _ATTEMPTS, 4)
        area = height * width * (self.area[0] + draws[..., 0] * (self.area[1] - self.area[0]))
        low, high = np.log(self.ratio)
        shape = np.exp(low + draws[..., 1] * (high - low))
        tall, wide = np.round(np.sqrt(area * shape)), np.round(np.sqrt(area / shape))
        fits = (tall < height) & (wide < width) & (tall > 0) & (wide > 0)
        top, left = np.floor(draws[..., 2] * (height - tall + 1)), np.floor(draws[..., 3] * (width - wide + 1))
        first = fits.argmax(axis=1)[:, None, None]
        boxes = np.take_along_axis(np.stack([top, left, tall, wide], axis=-1), first, axis=1)[:, 0]
        erased = (uniform(fold(keys, 1), 1)[:, 0] < self.probability) & fits.any(axis=1)
        return np.where(erased[:, None], boxes, 0.0).astype(np.int64)
