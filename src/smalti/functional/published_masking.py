"""The two published variants of blockwise masking: algorithm 1 of the paper, and the released code."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from smalti.core.contracts import Grid
from smalti.core.rng import Keys, fold, quarters
from smalti.functional.masking import (
    MAX_BLOCKS,
    Blocks,
    MaskRows,
    count_masked,
    empty_rows,
    first_patches,
    full_rows,
    inside,
    place,
    rectangles,
)

_TRIES = 10
"""Failed tries in a row after which the released code stops adding blocks to a mask."""


@dataclass(frozen=True)
class Release(Blocks):
    """Add blocks that do not exceed the number of patches to mask; after ten failed tries the mask stays smaller.

    The area of a block is uniform between `min_patches` and the number of patches left to mask (which may be the
    smaller of the two), its aspect ratio log-uniform. A block must lie strictly inside the grid and add at least one
    patch. BEiT was trained with `num_masked=75` on 14 x 14: 64 to 75 patches, 74.5 on average, 75 in two masks of
    three.

    Reference: beit/masking_generator.py of the released code.
    Differs: there `min_patches` is 16 (the class's default: 4) on every grid, so that masks are often empty where fewer
        patches are to be masked. Here it scales with the grid and is at most the number of patches to mask; where ten
        tries fail on an empty mask, one random patch is masked. On a grid of one row, blocks may have its height.
    """

    constant: ClassVar[bool] = False

    def draw(self, keys: Keys, grid: Grid) -> MaskRows:
        """One try after the other, for all masks that are not finished."""
        count, masked = self.count(grid), empty_rows(len(keys), grid)
        failed, number = np.zeros(len(keys), np.int64), 0
        while len(some := np.flatnonzero((failed < _TRIES) & (count_masked(masked) < count))):
            missing = count - count_masked(masked[:, some])
            new = self._block(quarters(fold(keys[some], number)), missing, grid) & ~masked[:, some]
            accepted = (count_masked(new) >= 1) & (count_masked(new) <= missing)
            masked[:, some] |= new * accepted
            failed[some] = np.where(accepted, 0, failed[some] + 1)
            number += 1
        empty = count_masked(masked) == 0  # after tries 0 to 9
        patch = (fold(keys, _TRIES) % (grid[0] * grid[1])).astype(np.int64)
        sides = np.broadcast_to(empty, (2, len(keys))).astype(np.int64)
        return masked | rectangles(np.stack(np.divmod(patch, grid[1])), sides, grid)

    def _block(self, draw: NDArray[np.float64], missing: NDArray[np.int32], grid: Grid) -> MaskRows:
        least = self.least_block(grid)
        area = least + draw[0] * (missing - least)
        return rectangles(*place(area, self.log_aspect(draw[1]), draw[2:], inside(grid), grid), grid)


@dataclass(frozen=True)
class Algorithm1(Blocks):
    """Add blocks until *more* than `ratio` of the grid is masked: 79 to 96 patches of 196, 82.5 on average.

    Where algorithm 1 leaves details open: sides are rounded, blocks are half-open intervals, blocks larger than the
    grid are redrawn, Rand(16, R) with R < 16 is the interval between the two, and aspect ratios are uniform. With
    `num_masked`, at least that many patches are masked.

    Reference: BEiT §2.3, algorithm 1.
    Differs: a block that would mask the whole grid is redrawn, and the smallest area scales with the grid.
    """

    constant: ClassVar[bool] = False

    def fewest(self, grid: Grid) -> int:
        """The fewest patches that a mask covers on this grid."""
        requested = self.requested(grid)
        above = min(math.floor(self._target(grid)) + 1, grid[0] * grid[1] - 1)
        return above if self.num_masked is None else requested

    def count(self, grid: Grid) -> int:
        """K: the most patches that a mask can cover, over all areas and times of the last block, which is not cut."""
        least, target = self.least_block(grid), self._target(grid)
        height, width = (np.arange(1, side + 1) for side in grid)
        area = _least_area(height[:, None], width, self.min_aspect)
        before = np.where(area <= least, self.fewest(grid) - 1, np.floor(target - area))
        total = np.where(area <= max(least, target), before + height[:, None] * width, 0)
        return int(min(total.max(), grid[0] * grid[1] - 1))

    def _target(self, grid: Grid) -> float:
        """The threshold, 0.4 N in the paper; a mask is finished when it covers more patches."""
        return self.ratio * (grid[0] * grid[1]) if self.num_masked is None else float(self.num_masked)

    def draw(self, keys: Keys, grid: Grid) -> MaskRows:
        """One block after the other, for all masks that cover too little."""
        fewest, masked = self.fewest(grid), empty_rows(len(keys), grid)
        for number in range(MAX_BLOCKS):
            some = np.flatnonzero(count_masked(masked) < fewest)
            if not len(some):
                break
            block = self._block(quarters(fold(keys[some], number)), count_masked(masked[:, some]), grid)
            grown = masked[:, some] | block
            masked[:, some] |= block * (count_masked(grown) < grid[0] * grid[1])
        along_rows = np.zeros(len(keys), np.bool_)
        return masked | first_patches(
            full_rows(grid) & ~masked, np.maximum(fewest - count_masked(masked), 0), along_rows, grid
        )

    def _block(self, draw: NDArray[np.float64], masked: NDArray[np.int32], grid: Grid) -> MaskRows:
        least = self.least_block(grid)
        area = least + draw[0] * (self._target(grid) - masked - least)
        aspect = self.min_aspect + draw[1] * (1 / self.min_aspect - self.min_aspect)
        return rectangles(*place(area, aspect, draw[2:], grid, grid), grid)


def _least_area(height: NDArray[np.int64], width: NDArray[np.int64], min_aspect: float) -> NDArray[np.float64]:
    """The smallest area that rounds to these sides at an allowed aspect ratio; infinite where there is none."""
    shortest = [np.where(side > 1, side - 0.5, 0.0) for side in (height, width)]
    tall = np.maximum(shortest[0], min_aspect * shortest[1])
    wide = np.maximum(shortest[1], min_aspect * shortest[0])
    possible = (tall <= height + 0.5) & (wide <= width + 0.5)
    area: NDArray[np.float64] = np.where(possible, tall * wide * (1 - 1e-9), np.inf)  # drawn areas are rounded
    return area
