"""Masks as integers: each row of patches is a bit field, so blocks are added and counted for many masks at once."""

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from smalti.core.contracts import Grid

MaskRows: TypeAlias = NDArray[Any]
"""B masks: bit j of `rows[i, b]` says whether mask b covers the patch in row i and column j."""


def integers(width: int) -> np.dtype[Any]:
    """The smallest unsigned integer type with `width` bits; above 64 bits Python's integers, which are slower."""
    return np.min_scalar_type((1 << width) - 1)


def nothing(num: int, grid: Grid) -> MaskRows:
    """Empty masks."""
    return np.zeros((grid[0], num), integers(grid[1]))


def everything(grid: Grid) -> MaskRows:
    """One mask that covers the whole grid."""
    return _lowest(np.array([grid[1]]), integers(grid[1]))


def size(rows: MaskRows) -> NDArray[np.int32]:
    """The number of masked patches of each mask."""
    masked: NDArray[np.int32] = np.bitwise_count(rows).astype(np.int32).sum(axis=0, dtype=np.int32)
    return masked


def booleans(rows: MaskRows, width: int) -> NDArray[np.bool_]:
    """The masks as booleans, B x N, row-major, True where masked."""
    bit = 1 << np.arange(width).astype(rows.dtype)
    by_mask = np.ascontiguousarray(rows.T)
    masks: NDArray[np.bool_] = (by_mask[:, :, None] & bit) != 0
    return masks.reshape(len(by_mask), -1)


def rectangles(corner: NDArray[np.int64], sides: NDArray[np.int64], grid: Grid) -> MaskRows:
    """One rectangle per mask, from its (top, left) and (height, width) in patches."""
    row = np.arange(grid[0])[:, None]
    columns = _lowest(sides[1], integers(grid[1])) << corner[1].astype(integers(grid[1]))
    blocks: MaskRows = columns * ((row >= corner[0]) & (row < corner[0] + sides[0]))
    return blocks


def first(rows: MaskRows, most: NDArray[np.int32], by_column: NDArray[np.bool_], grid: Grid) -> MaskRows:
    """The first `most` masked patches of each mask, in the order of its rows or of its columns, found by bisection."""
    beginnings, longest = _beginnings(grid)
    stop = np.where(by_column, longest, 0)
    step = longest // 2
    while step:
        fits = size(rows & beginnings.take(stop + step, axis=1)) <= most
        stop += step * fits
        step //= 2
    return rows & beginnings.take(stop, axis=1)


def _lowest(num: NDArray[np.int64], kind: np.dtype[Any]) -> NDArray[Any]:
    """Integers whose lowest `num` bits are set, which are the first patches of a row."""
    return (1 << num.astype(kind)) - 1


@lru_cache(maxsize=8)
def _beginnings(grid: Grid) -> tuple[MaskRows, int]:
    """Masks of the first 0, 1, 2, ... patches of the grid, by rows and then by columns; and the number of either."""
    height, width = grid
    length = 1 << (height * width).bit_length()
    row, num = np.arange(height)[:, None], np.arange(length)
    along_rows, along_columns = num - row * width, (num - row + height - 1) // height
    in_row = np.concatenate([along_rows, along_columns], axis=1)
    return _lowest(np.clip(in_row, 0, width), integers(width)), length
