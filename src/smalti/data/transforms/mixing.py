"""Mixup and CutMix: two images in one, and their classes by the share that each has of it."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from smalti.core.config import require, setting
from smalti.core.contracts import Batch
from smalti.core.rng import Keys, Stream, fold, uniform
from smalti.data.transforms.batch_transforms import keys_of
from smalti.distributed.collectives import reversed_over_ranks
from smalti.models.vit import as_unit_range

_ATTEMPTS = 32


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
        """The batch with mixed images and with `target`."""
        assert batch.label is not None
        images = as_unit_range(batch.image)
        height, width = images.shape[-2:]
        kept = torch.from_numpy(self.kept(keys_of(batch), height, width)).to(images.device, torch.float32)
        target = batch.target if batch.target is not None else F.one_hot(batch.label, num_classes).float()
        share = kept.mean((1, 2))[:, None]
        return replace(
            batch,
            image=torch.lerp(reversed_over_ranks(images), images, kept[:, None]),
            target=torch.lerp(reversed_over_ranks(target), target, share),
        )

    def kept(self, keys: Keys, height: int, width: int) -> NDArray[np.float64]:
        """How much of the image itself is at each pixel: B x `height` x `width`, or B x 1 x 1 where nothing is cut."""
        mixed, kind, down, right = uniform(fold(keys, Stream.MIX), 4).T
        cut = kind < (self.switch if self.mixup and self.cutmix else float(self.cutmix > 0))
        alpha = np.where(cut, self.cutmix, self.mixup)
        share = np.where(mixed < self.probability, beta(fold(keys, Stream.MIX, 1), np.maximum(alpha, 1e-3)), 1.0)
        if not cut.any():
            return share[:, None, None]
        side = np.sqrt(1 - share) / 2
        rows, columns = (_inside(*place) for place in ((down, side, height), (right, side, width)))
        box = rows[:, :, None] & columns[:, None, :]
        return np.where(cut[:, None, None], 1.0 - box, share[:, None, None])


def beta(keys: Keys, alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    """One draw from Beta(α, α) for each key, α at most 1.

    x / (x + y) for x = u^(1/α) and y = v^(1/α), of the first of 32 pairs that has x + y <= 1, as each has with a
    probability of 1/2 or more. Where none has, 1/2.

    Reference: Jöhnk 1964.
    """
    draws = uniform(keys, 2 * _ATTEMPTS).reshape(len(keys), 2, _ATTEMPTS)
    x, y = np.moveaxis(draws ** (1 / alpha[:, None, None]), 1, 0)
    fits = (x + y <= 1) & (x + y > 0)
    first = fits.argmax(axis=1)[:, None]
    x, y = (np.take_along_axis(side, first, axis=1)[:, 0] for side in (x, y))
    return np.where(fits.any(axis=1), x / np.maximum(x + y, np.finfo(np.float64).tiny), 0.5)


def _inside(centre: NDArray[np.float64], half: NDArray[np.float64], length: int) -> NDArray[np.bool_]:
    """B x `length`: which pixels of a side are in the box around `centre`; both are shares of the side."""
    pixel = np.arange(length)
    middle, reach = np.floor(centre * length)[:, None], np.floor(half * length)[:, None]
    return (pixel >= middle - reach) & (pixel < middle + reach)
