"""Batch augmentations applied after crop, mirror and jitter: random erasing, mixup and CutMix."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from smalti.core.compute import on_device
from smalti.core.config import require, setting
from smalti.core.contracts import Batch, Batches, BatchWrapper
from smalti.core.rng import Keys, Stream, fold, uniform
from smalti.distributed.collectives import reversed_over_ranks
from smalti.functional.noise import uniform_noise
from smalti.models.vit import as_unit_range

_RECTANGLES, _SHARES = 10, 32
"""Number of draws of an erased rectangle, and of the share λ of a mixed image; the first draw that fits is used."""

_NOISE = 2
"""Number of the noise stream drawn from a key; 0 is used for Gumbel noise, 1 for drop path."""

_CPU = torch.device("cpu")

BatchTransform: TypeAlias = Callable[[Batch], Batch]
"""A function of the batch only; all its random numbers are drawn from `keys_of`."""


@dataclass(frozen=True)
class TransformedBatches(BatchWrapper):
    """Batches moved to the device, with every transform applied in order.

    Keys are moved last: what is drawn from them on the CPU would else wait for all work that a GPU was given before.
    """

    batches: Batches
    transforms: tuple[BatchTransform, ...]
    device: torch.device

    def __call__(self, step: int) -> Batch:
        made = self.batches(step)
        batch = replace(made.to(self.device), key=made.key)
        for transform in self.transforms:
            batch = transform(batch)
        return batch.to(self.device)


def keys_of(batch: Batch) -> Keys:
    """The random key of each image: (B,), uint64."""
    return batch.key.cpu().numpy().view(np.uint64)


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
        """The batch with changed images: (B, C, H, W), float in [0, 1]."""
        boxes = self.boxes(keys_of(batch), *batch.image.shape[-2:])
        rows = on_device(torch.from_numpy(np.flatnonzero(boxes[:, 2] > 0)), batch.image.device)
        if len(rows) == 0:
            return batch
        images = as_unit_range(batch.image).clone()
        some = images[rows]
        top, left, height, width = on_device(torch.from_numpy(boxes), rows.device)[rows].T[..., None, None]
        down = torch.arange(some.shape[-2], device=rows.device)[:, None]
        right = torch.arange(some.shape[-1], device=rows.device)
        inside = (down >= top) & (down < top + height) & (right >= left) & (right < left + width)
        keys = on_device(batch.key, rows.device)[rows]
        noise = uniform_noise(keys, some[0].numel(), _NOISE).reshape(some.shape)
        images[rows] = torch.where(inside[:, None], noise, some)
        return replace(batch, image=images)

    def boxes(self, keys: Keys, height: int, width: int) -> NDArray[np.int64]:
        """Top, left, height and width in pixels for each key: (B, 4); all 0 where nothing is erased."""
        keys = fold(keys, Stream.ERASE)
        draws = uniform(keys, 4 * _RECTANGLES).reshape(len(keys), _RECTANGLES, 4)
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


@dataclass(frozen=True)
class Mixing:
    """Every image of a batch is mixed with the one at the mirrored place: the first with the last, and so on; of
    several processes it is that of the whole batch, whose image another process sends.

    out = λ·image + (1-λ)·other with λ from Beta(α, α): everywhere (mixup), or with λ = 0 in a box and 1 around it
    (CutMix), the box having a share 1-λ of the area before it is cut off at the borders. Classes are mixed by the share
    of the area that is left.

    Reference: Zhang et al. 2018; Yun et al. 2019; timm, data/mixup.py, and BEiT's fine-tuning, both of which choose
    between the two (`switch`).
    Differs: λ, box and kind are drawn for each image, as timm's mode `elem` does, and not once for the batch.
    """

    mixup: float = setting(0.0, "α of mixup, at most 1; 0: none", "released code: 0.8 from pretrained weights")
    cutmix: float = setting(0.0, "α of CutMix, at most 1; 0: none", "released code: 1.0 from pretrained weights")
    probability: float = setting(1.0, "that an image is mixed at all", "released code")
    switch: float = setting(0.5, "probability of CutMix where both are on", "released code")

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            require(0 <= getattr(self, name) <= 1, f"a {name} of {getattr(self, name)}", "use 0 to 1")
        for name in ("probability", "switch"):
            require(0 <= getattr(self, name) <= 1, f"a {name} of mixing of {getattr(self, name)}", "use 0 to 1")

    @property
    def on(self) -> bool:
        """Whether anything is mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def __call__(self, batch: Batch, num_classes: int) -> Batch:
        """The batch with mixed images (B, C, H, W), float in [0, 1], and mixed `target` (B, num_classes), float."""
        assert batch.label is not None
        images = as_unit_range(batch.image)
        height, width = images.shape[-2:]
        kept = self.kept(keys_of(batch), height, width, images.device)
        target = batch.target if batch.target is not None else F.one_hot(batch.label, num_classes).float()
        share = kept.mean((1, 2))[:, None]
        return replace(
            batch,
            image=torch.lerp(reversed_over_ranks(images), images, kept[:, None]),
            target=torch.where(share < 1, torch.lerp(reversed_over_ranks(target), target, share), target),
        )

    def kept(self, keys: Keys, height: int, width: int, device: torch.device = _CPU) -> Float[Tensor, "B _H _W"]:
        """Weight of the image itself at each pixel, in [0, 1]: (B, height, width), or (B, 1, 1) without CutMix."""
        mixed, kind, down, right = uniform(fold(keys, Stream.MIX), 4).T
        cut = kind < (self.switch if self.mixup and self.cutmix else float(self.cutmix > 0))
        alpha = np.where(cut, self.cutmix, self.mixup)
        share = np.where(mixed < self.probability, beta(fold(keys, Stream.MIX, 1), np.maximum(alpha, 1e-3)), 1.0)
        shares = on_device(torch.from_numpy(share).float(), device)[:, None, None]
        if not cut.any():
            return shares
        side = np.sqrt(1 - share) / 2
        drawn = cut[:, None], _inside(down, side, height), _inside(right, side, width)
        is_cut, rows, columns = (on_device(torch.from_numpy(part), device) for part in drawn)
        box = rows[:, :, None] & columns[:, None, :]
        return torch.where(is_cut[:, None], (~box).float(), shares)


def beta(keys: Keys, alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    """One draw from Beta(α, α) for each key: (B,), float64 in [0, 1].

    The draw is x / (x + y) with x = u^(1/α) and y = v^(1/α), for the first of 32 pairs (u, v) with x + y <= 1. Each
    pair satisfies this with probability 1/2 or more; if none does, the draw is 1/2.

    Args:
        keys: (B,), uint64.
        alpha: (B,), α of each draw, at most 1.

    Reference: Jöhnk 1964.
    """
    draws = uniform(keys, 2 * _SHARES).reshape(len(keys), 2, _SHARES)
    x, y = np.moveaxis(draws ** (1 / alpha[:, None, None]), 1, 0)
    fits = (x + y <= 1) & (x + y > 0)
    first = fits.argmax(axis=1)[:, None]
    x, y = (np.take_along_axis(side, first, axis=1)[:, 0] for side in (x, y))
    return np.where(fits.any(axis=1), x / np.maximum(x + y, np.finfo(np.float64).tiny), 0.5)


def _inside(centre: NDArray[np.float64], half: NDArray[np.float64], length: int) -> NDArray[np.bool_]:
    """Which pixels of a side lie in the box, (B, length); centre and half its length, (B,), are shares of the side."""
    pixel = np.arange(length)
    middle, reach = np.floor(centre * length)[:, None], np.floor(half * length)[:, None]
    return (pixel >= middle - reach) & (pixel < middle + reach)
