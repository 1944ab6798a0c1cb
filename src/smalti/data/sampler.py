"""Which images a step sees, and with which keys."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from smalti.core.config import require
from smalti.core.rng import Keys, fold, permutation


@dataclass(frozen=True, eq=False)
class SampledBatch:
    """The images of a batch and what all randomness about them is drawn from.

    Attributes:
        index: position of each image in its source.
        epoch: how often each image has been seen before.
        keys: of masks and noise; another one in every epoch.
        view_epoch, view_keys: of crop, mirror and colours. The same as `epoch` and `keys`, unless views are cycled.
    """

    index: NDArray[np.int64]
    epoch: NDArray[np.int64]
    keys: Keys
    view_epoch: NDArray[np.int64]
    view_keys: Keys


@dataclass(frozen=True)
class Sampler:
    """An endless stream of images, permutation after permutation: step s takes the images s·B to (s+1)·B of it.

    Every image is seen equally often, whatever the batch size.

    Attributes:
        length: images in the source.
        batch_size: images in a step, over all processes.
        part: which of how many equal parts of every batch is wanted, counted from 0; together they are the batch.
        num_views: views an image has; each is shown again every `num_views` epochs. None: a new one every epoch.
    """

    length: int
    batch_size: int
    seed: int
    part: tuple[int, int] = (0, 1)
    num_views: int | None = None

    def __post_init__(self) -> None:
        rank, world = self.part
        require(0 <= rank < world, f"part {rank} of {world}", "count parts from 0")
        require(
            self.batch_size % world == 0,
            f"a batch of {self.batch_size} images does not divide into {world} equal parts",
            f"use a multiple of {world}",
        )

    def __call__(self, step: int) -> SampledBatch:
        """The images of one step, counted from 0."""
        rank, world = self.part
        share = self.batch_size // world
        start = step * self.batch_size + rank * share
        stream = np.arange(start, start + share)
        epoch, place = stream // self.length, stream % self.length
        index = np.concatenate([_permuted(self.seed, int(e), self.length)[place[epoch == e]] for e in np.unique(epoch)])
        return self.rows(index, epoch)

    def rows(self, index: NDArray[np.int64], epoch: NDArray[np.int64]) -> SampledBatch:
        """The given images as they are seen in the given epochs."""
        view_epoch = epoch if self.num_views is None else epoch % self.num_views
        return SampledBatch(index, epoch, fold(self.seed, epoch, index), view_epoch, fold(self.seed, view_epoch, index))


@lru_cache(maxsize=2)
def _permuted(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return permutation(seed, epoch, length)
