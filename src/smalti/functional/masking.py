"""Which patches to hide. A mask is a function of its key: the same alone or in a batch of any size."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from smalti.core.config import require, setting
from smalti.core.contracts import Grid
from smalti.core.rng import Keys, fold, quarters

_MOST_BLOCKS = 100
"""After so many blocks (where hardly any block fits the grid) the rest is filled up in reading order."""

_BLOCKS_AT_ONCE, _MASKS_AT_ONCE = 4, 4096
"""What is fastest: a mask takes four blocks on average, and some thousand masks fit a processor's cache."""

Rows: TypeAlias = NDArray[Any]
"""B masks as integers: bit j of `rows[i, b]` says whether mask b hides the patch in row i and column j."""


def _count(ratio: float, grid: Grid) -> int:
    patches = grid[0] * grid[1]
    return min(max(round(ratio * patches), 1), patches - 1)


@dataclass(frozen=True)
class Random:
    """Every patch is hidden with the same probability, independently of its neighbours (BEiT's ablation)."""

    ratio: float = setting(0.4, "share of patches", "BEiT §3.3 (ablation)")

    def __post_init__(self) -> None:
        require(0 < self.ratio < 1, f"a mask ratio of {self.ratio}", "choose one between 0 and 1")

    def count(self, grid: Grid) -> int:
        return _count(self.ratio, grid)

    def __call__(self, keys: Keys, grid: Grid) -> NDArray[np.bool_]:
        draws = fold(keys[:, None], np.arange(grid[0] * grid[1]))  # as integers, no two of a key are equal
        last = self.count(grid) - 1
        mask: NDArray[np.bool_] = draws <= np.partition(draws, last, axis=1)[:, last, None]
        return mask


@dataclass(frozen=True)
class Blockwise:
    """Rectangles of patches are hidden until exactly `ratio` of the grid is; our default, `exact`.

    A block has an area drawn uniformly between `min_patches` and what is left to hide, and an aspect ratio drawn
    log-uniformly between `min_aspect` and its inverse. Blocks that do not fit strictly inside the grid are redrawn.
    The last block keeps only as many of its new patches as are still needed, along its rows or along its columns.

    Reference: BEiT §2.3, algorithm 1.
    Differs: algorithm 1 stops at *more* than 40 % (79 to 96 patches of 196), the released code at *no more* than 75;
        here every mask has the same size. The least block area scales with the grid: 16 patches of 14 x 14.
    """

    ratio: float = setting(0.4, "share of patches", "BEiT §2.3: about 40 %")
    min_patches: int | None = setting(None, "patches; none: 16 scaled from 14 x 14 to the grid", "algorithm 1")
    min_aspect: float = setting(0.3, "height / width", "algorithm 1")

    def __post_init__(self) -> None:
        require(0 < self.ratio < 1, f"a mask ratio of {self.ratio}", "choose one between 0 and 1")
        require(0 < self.min_aspect <= 1, f"an aspect ratio of {self.min_aspect}", "choose one in (0, 1]")
        require(
            self.min_patches is None or self.min_patches >= 1, "a block of no patches", "use min_patches of 1 or more"
        )

    def count(self, grid: Grid) -> int:
        return _count(self.ratio, grid)

    def least_block(self, grid: Grid) -> int:
        """The least area of a block on this grid, in patches."""
        scaled = round(16 * grid[0] * grid[1] / 196) if self.min_patches is None else self.min_patches
        return min(max(scaled, 1), self.count(grid))

    def __call__(self, keys: Keys, grid: Grid) -> NDArray[np.bool_]:
        keys = keys.reshape(-1)
        masks = np.empty((len(keys), grid[0] * grid[1]), np.bool_)
        for start in range(0, len(keys), _MASKS_AT_ONCE):
            some = slice(start, start + _MASKS_AT_ONCE)
            masks[some] = self._masks(keys[some], grid)
        return masks

    def _masks(self, keys: Keys, grid: Grid) -> NDArray[np.bool_]:
        """Blocks until enough is hidden; then the last block of each mask gives back what is too much."""
        count, integers = self.count(grid), _integers(grid[1])
        hidden, last = np.zeros((2, grid[0], len(keys)), integers)  # all blocks; the patches that the last one added
        for drawn in range(0, _MOST_BLOCKS, _BLOCKS_AT_ONCE):
            some = np.flatnonzero(_size(hidden) < count)
            if not len(some):
                break
            blocks = np.arange(drawn, drawn + _BLOCKS_AT_ONCE)[:, None]
            draws = quarters(fold(keys[some], blocks)).swapaxes(0, 1)
            hidden[:, some], last[:, some] = self._grow(hidden[:, some], last[:, some], draws, grid)
        everything = _lowest(np.array([grid[1]]), integers)
        hidden, last = _add(everything, hidden, last, _size(hidden) < count)
        surplus = _size(hidden) - count
        by_column = fold(keys, _MOST_BLOCKS) % 2 == 1
        kept = _first(last, _size(last) - surplus, by_column, grid)
        return _booleans(hidden & ~last | kept, grid[1])

    def _grow(self, hidden: Rows, last: Rows, draws: NDArray[np.float64], grid: Grid) -> tuple[Rows, Rows]:
        """Draw a few blocks in turn, for all the masks that still hide too little."""
        for draw in draws:
            missing = self.count(grid) - _size(hidden)
            corner, sides = self._block(draw, missing, grid)
            hidden, last = _add(_rectangles(corner, sides, grid), hidden, last, missing > 0)
        return hidden, last

    def _block(
        self, draw: NDArray[np.float64], missing: NDArray[np.int32], grid: Grid
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A block from four uniform draws: its (top, left) and (height, width), 0 where it does not fit the grid."""
        least, shape = self.least_block(grid), np.array(grid)[:, None]
        area = least + draw[0] * np.maximum(missing - least, 0)
        aspect = self.min_aspect ** (1 - 2 * draw[1])
        sides = np.maximum(np.rint(np.sqrt([area * aspect, area / aspect])), 1)
        fits = np.logical_and(*(sides < np.maximum(shape, 2)))
        corner = draw[2:] * (shape - sides + 1)
        return (corner * fits).astype(np.int64), (sides * fits).astype(np.int64)


def _integers(width: int) -> np.dtype[Any]:
    """The smallest integers of `width` bits; beyond 64 bits Python's own: slower, and the same for all that follows."""
    return np.min_scalar_type((1 << width) - 1)


def _lowest(num: NDArray[np.int64], integers: np.dtype[Any]) -> NDArray[Any]:
    """Integers whose lowest `num` bits are set: the first patches of a row."""
    return (1 << num.astype(integers)) - 1


def _size(rows: Rows) -> NDArray[np.int32]:
    """How many patches each mask hides."""
    size: NDArray[np.int32] = np.bitwise_count(rows).astype(np.int32).sum(axis=0, dtype=np.int32)
    return size


def _booleans(rows: Rows, width: int) -> NDArray[np.bool_]:
    """B x N, row-major."""
    bit = 1 << np.arange(width).astype(rows.dtype)
    by_mask = np.ascontiguousarray(rows.T)
    masks: NDArray[np.bool_] = (by_mask[:, :, None] & bit) != 0
    return masks.reshape(len(by_mask), -1)


def _rectangles(corner: NDArray[np.int64], sides: NDArray[np.int64], grid: Grid) -> Rows:
    integers, row = _integers(grid[1]), np.arange(grid[0])[:, None]
    columns = _lowest(sides[1], integers) << corner[1].astype(integers)
    blocks: Rows = columns * ((row >= corner[0]) & (row < corner[0] + sides[0]))
    return blocks


def _add(block: Rows, hidden: Rows, last: Rows, where: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """Hide a block in those masks; what it adds becomes their last block."""
    new = (block * where) & ~hidden
    return hidden | new, (last * ~where) | new


def _first(rows: Rows, most: NDArray[np.int32], by_column: NDArray[np.bool_], grid: Grid) -> Rows:
    """The first `most` patches of each mask, reading along its rows or its columns; bisects for where to stop."""
    beginnings, longest = _beginnings(grid)
    stop = np.where(by_column, longest, 0)
    step = longest // 2
    while step:
        fits = _size(rows & beginnings.take(stop + step, axis=1)) <= most
        stop += step * fits
        step //= 2
    return rows & beginnings.take(stop, axis=1)


@lru_cache(maxsize=8)
def _beginnings(grid: Grid) -> tuple[Rows, int]:
    """The first 0, 1, 2, ... patches along the rows and then along the columns; how many beginnings either has."""
    height, width = grid
    length = 1 << (height * width).bit_length()
    row, num = np.arange(height)[:, None], np.arange(length)
    along_rows, along_columns = num - row * width, (num - row + height - 1) // height
    in_row = np.concatenate([along_rows, along_columns], axis=1)
    return _lowest(np.clip(in_row, 0, width), _integers(width)), length


def mask_index(mask: NDArray[np.bool_], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Positions of the hidden patches in a static shape.

    Args:
        mask: B x N, True where hidden.
        count: K, the most patches a mask hides.

    Returns:
        B x K positions in rising order, and B x K weights: 1 for a hidden patch, 0 for padding.
    """
    order = np.argsort(~mask, axis=1, kind="stable")[:, :count]
    weight = np.arange(count) < mask.sum(axis=1, keepdims=True)
    return order.astype(np.int64), weight.astype(np.float32)
