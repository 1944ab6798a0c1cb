"""From a source to batches. A batch is a pure function of the step: there is nothing to save and nothing to restore."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from smalti.core.contracts import Batch, Grid, Masking
from smalti.core.rng import Keys, Stream, fold, permutation, signed
from smalti.data.augment import resample
from smalti.data.sources import Resident
from smalti.data.views import RandomResizedCrop, WholeImage
from smalti.functional.masking import mask_index


@dataclass(frozen=True)
class Loader:
    """Batches of one source, in an order, with crops and masks that depend on `seed` alone.

    The source is read as one endless stream, permutation after permutation: step s takes the images s·B to (s+1)·B of
    it. Every image is seen equally often, whatever the batch size.

    Attributes:
        size: height and width of the patch view in pixels.
        token_size: height and width of the token view; None where the tokenizer reads the patch view.
        masking, grid: what to hide; None where nothing is hidden.
    """

    source: Resident
    crop: RandomResizedCrop | WholeImage
    size: tuple[int, int]
    batch_size: int
    seed: int
    token_size: tuple[int, int] | None = None
    masking: Masking | None = None
    grid: Grid = (0, 0)

    def __call__(self, step: int) -> Batch:
        """The batch of one step, counted from 0."""
        stream = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epoch, place = stream // len(self.source), stream % len(self.source)
        index = np.concatenate(
            [_order(self.seed, int(e), len(self.source))[place[epoch == e]] for e in np.unique(epoch)]
        )
        return self.at(index, fold(self.seed, epoch, index))

    def at(self, index: NDArray[np.int64], keys: Keys) -> Batch:
        """The batch of the given images, augmented and masked as their keys say."""
        chosen = torch.from_numpy(index)
        images = self.source.images[chosen]
        crop = self.crop(keys, *images.shape[-2:])
        batch = Batch(
            image=resample(images, crop, self.size),
            token_image=None if self.token_size is None else resample(images, crop, self.token_size, "lanczos"),
            index=chosen,
            key=torch.from_numpy(signed(fold(keys, Stream.NOISE))),
            label=self.source.labels[chosen],
        )
        return batch if self.masking is None else _hide(batch, self.masking, fold(keys, Stream.MASK), self.grid)


def _hide(batch: Batch, masking: Masking, keys: Keys, grid: Grid) -> Batch:
    mask = masking(keys, grid)
    index, weight = mask_index(mask, masking.count(grid))
    return replace(
        batch, mask=torch.from_numpy(mask), mask_index=torch.from_numpy(index), mask_weight=torch.from_numpy(weight)
    )


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return permutation(seed, epoch, length)
