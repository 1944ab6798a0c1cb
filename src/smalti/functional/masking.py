"""Which patches to mask. A mask is a function of its key, so it does not depend on the batch.

Masks are drawn as integers: each row of patches is a bit field, so blocks are added and counted for many masks at once.
"""

from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Any, ClassVar, TypeAlias

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from smalti.core.config import require, setting
from smalti.core.contracts import Grid, Masking
from smalti.core.rng import Keys, fold, quarters

MaskRows: TypeAlias = NDArray[Any]
"""B masks: bit j of `rows[i, b]` says whether mask b covers the patch in row i and column j."""
MAX_BLOCKS = 100
"""After so many blocks, which happens where hardly any block fits the grid, the rest is masked in reading order."""
_BLOCKS_AT_ONCE, _MASKS_AT_ONCE = 4, 4096
"""The fastest values: a mask has four blocks on average, and some thousand masks fit into a processor's cache."""


def row_dtype(width: int) -> np.dtype[Any]:
    """The smallest unsigned integer type with `width` bits; above 64 bits Python's integers, which are slower."""
    return np.min_scalar_type((1 << width) - 1)


def empty_rows(num: int, grid: Grid) -> MaskRows:
    """Empty masks."""
    return np.zeros((grid[0], num), row_dtype(grid[1]))


def full_rows(grid: Grid) -> MaskRows:
    """One mask that covers the whole grid."""
    return _lowest(np.array([grid[1]]), row_dtype(grid[1]))


def count_masked(rows: MaskRows) -> NDArray[np.int32]:
    """The number of masked patches of each mask."""
    masked: NDArray[np.int32] = np.bitwise_count(rows).astype(np.int32).sum(axis=0, dtype=np.int32)
    return masked


def to_boolean(rows: MaskRows, width: int) -> NDArray[np.bool_]:
    """The masks as booleans, B x N, row-major, True where masked."""
    bit = 1 << np.arange(width).astype(rows.dtype)
    by_mask = np.ascontiguousarray(rows.T)
    masks: NDArray[np.bool_] = (by_mask[:, :, None] & bit) != 0
    return masks.reshape(len(by_mask), -1)


def rectangles(corner: NDArray[np.int64], sides: NDArray[np.int64], grid: Grid) -> MaskRows:
    """One rectangle per mask, from its (top, left) and (height, width) in patches."""
    row = np.arange(grid[0])[:, None]
    columns = _lowest(sides[1], row_dtype(grid[1])) << corner[1].astype(row_dtype(grid[1]))
    blocks: MaskRows = columns * ((row >= corner[0]) & (row < corner[0] + sides[0]))
    return blocks


def first_patches(rows: MaskRows, most: NDArray[np.int32], by_column: NDArray[np.bool_], grid: Grid) -> MaskRows:
    """The first `most` masked patches of each mask, in the order of its rows or of its columns, found by bisection."""
    beginnings, longest = _beginnings(grid)
    stop = np.where(by_column, longest, 0)
    step = longest // 2
    while step:
        fits = count_masked(rows & beginnings.take(stop + step, axis=1)) <= most
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
    return _lowest(np.clip(in_row, 0, width), row_dtype(width)), length


@dataclass(frozen=True)
class Share:
    """How much to mask, as a share of the grid or a number of patches."""

    constant: ClassVar[bool] = True
    """Whether every mask covers as many patches as `count` says."""

    ratio: float = setting(0.4, "share of patches", "BEiT §2.3: about 40 %")
    _: KW_ONLY
    num_masked: int | None = setting(None, "patches, in place of the ratio; none: the ratio", "release: 75 of 196")

    def __post_init__(self) -> None:
        require(0 < self.ratio < 1, f"a mask ratio of {self.ratio}", "choose one between 0 and 1")

    def requested(self, grid: Grid) -> int:
        """The number of patches to mask on this grid, in [1, N - 1].

        Raises:
            UsageError: the grid has a single patch, or `num_masked` does not fit it.
        """
        patches, name = grid[0] * grid[1], f"a grid of {grid[0]} x {grid[1]} patches"
        require(patches >= 2, f"nothing to mask in {name}", "use at least two patches")
        if self.num_masked is None:
            return min(max(round(self.ratio * patches), 1), patches - 1)
        asked = f"{self.num_masked} patches to mask in {name}"
        require(0 < self.num_masked < patches, asked, f"choose 1 to {patches - 1}")
        return self.num_masked

    def count(self, grid: Grid) -> int:
        """K: the most patches that a mask covers on this grid."""
        return self.requested(grid)


@dataclass(frozen=True)
class Random(Share):
    """Every patch is masked with the same probability, independently of its neighbours.

    Reference: BEiT §3.3 (ablation).
    """

    def __call__(self, keys: Keys, grid: Grid) -> NDArray[np.bool_]:
        last = self.count(grid) - 1
        draws = fold(keys[:, None], np.arange(grid[0] * grid[1]))  # the 64-bit draws of a key are all different
        mask: NDArray[np.bool_] = draws <= np.partition(draws, last, axis=1)[:, last, None]
        return mask


@dataclass(frozen=True)
class Blocks(Share):
    """Common base of block-wise maskings: smallest area and aspect ratios of blocks, and masks as integers."""

    min_patches: int | None = setting(None, "patches; none: 16 scaled from 14 x 14 to the grid", "algorithm 1")
    min_aspect: float = setting(0.3, "height / width", "algorithm 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.min_aspect <= 1, f"an aspect ratio of {self.min_aspect}", "choose one in (0, 1]")
        require(
            self.min_patches is None or self.min_patches >= 1, "a block of no patches", "use min_patches of 1 or more"
        )

    def least_block(self, grid: Grid) -> int:
        """The smallest area of a block on this grid in patches, at most the number of patches to mask."""
        scaled = round(16 * grid[0] * grid[1] / 196) if self.min_patches is None else self.min_patches
        return min(max(scaled, 1), self.requested(grid))

    def log_aspect(self, draw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Aspect ratios (height / width), log-uniform between `min_aspect` and its inverse, from uniform draws."""
        aspect: NDArray[np.float64] = self.min_aspect ** (1 - 2 * draw)
        return aspect

    def __call__(self, keys: Keys, grid: Grid) -> NDArray[np.bool_]:
        keys = keys.reshape(-1)
        masks = np.empty((len(keys), grid[0] * grid[1]), np.bool_)
        for start in range(0, len(keys), _MASKS_AT_ONCE):
            some = slice(start, start + _MASKS_AT_ONCE)
            masks[some] = to_boolean(self.draw(keys[some], grid), grid[1])
        return masks

    def draw(self, keys: Keys, grid: Grid) -> MaskRows:
        """One mask per key."""
        raise NotImplementedError


def place(
    area: NDArray[np.float64],
    aspect: NDArray[np.float64],
    draw: NDArray[np.float64],
    longest: tuple[int, int],
    grid: Grid,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rectangles of given area and aspect ratio at uniformly drawn places inside the grid.

    Args:
        area: in patches.
        aspect: height / width.
        draw: two uniform draws in [0, 1) per block.
        longest: the greatest allowed height and width in patches.
        grid: rows and columns.

    Returns:
        (top, left) and (height, width) in patches; the sides are 0 where one would exceed `longest`.
    """
    sides = np.maximum(np.rint(np.sqrt([area * aspect, area / aspect])), 1)
    fits = np.logical_and(*(sides <= np.array(longest)[:, None]))
    corner = draw * (np.array(grid)[:, None] - sides + 1)
    return (corner * fits).astype(np.int64), (sides * fits).astype(np.int64)


def inside(grid: Grid) -> tuple[int, int]:
    """The greatest height and width of a block strictly inside the grid: one less than each side, and at least one."""
    return max(grid[0] - 1, 1), max(grid[1] - 1, 1)


@dataclass(frozen=True)
class Blockwise(Blocks):
    """Mask rectangular blocks until exactly the requested number of patches is masked; the default.

    The area of a block is uniform between `min_patches` and the number of patches still to mask, its aspect ratio
    log-uniform between `min_aspect` and its inverse. Blocks that do not fit strictly inside the grid are redrawn. The
    last block is cut, along its rows or its columns, to the number of patches still to mask.

    Reference: BEiT §2.3, algorithm 1.
    Differs: algorithm 1 stops at *more* than 40 % (79 to 96 patches of 196), the released code at *no more* than 75;
        here every mask has the same size. The least block area scales with the grid: 16 patches of 14 x 14.
    """

    def draw(self, keys: Keys, grid: Grid) -> MaskRows:
        """Add blocks until enough is masked; then cut the last block of each mask."""
        count, masked = self.count(grid), empty_rows(len(keys), grid)
        last = masked.copy()  # the patches that the last block added
        for drawn in range(0, MAX_BLOCKS, _BLOCKS_AT_ONCE):
            some = np.flatnonzero(count_masked(masked) < count)
            if not len(some):
                break
            blocks = np.arange(drawn, drawn + _BLOCKS_AT_ONCE)[:, None]
            draws = quarters(fold(keys[some], blocks)).swapaxes(0, 1)
            masked[:, some], last[:, some] = self._grow(masked[:, some], last[:, some], draws, grid)
        masked, last = _add(full_rows(grid), masked, last, count_masked(masked) < count)
        surplus = count_masked(masked) - count
        by_column = fold(keys, MAX_BLOCKS) % 2 == 1
        kept = first_patches(last, count_masked(last) - surplus, by_column, grid)
        return masked & ~last | kept

    def _grow(
        self, masked: MaskRows, last: MaskRows, draws: NDArray[np.float64], grid: Grid
    ) -> tuple[MaskRows, MaskRows]:
        """Add a few blocks, one after the other, to the masks that cover too little."""
        for draw in draws:
            missing = self.count(grid) - count_masked(masked)
            corner, sides = self._block(draw, missing, grid)
            masked, last = _add(rectangles(corner, sides, grid), masked, last, missing > 0)
        return masked, last

    def _block(
        self, draw: NDArray[np.float64], missing: NDArray[np.int32], grid: Grid
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A block from four uniform draws: its (top, left) and (height, width), sides 0 where it does not fit."""
        least = self.least_block(grid)
        area = least + draw[0] * np.maximum(missing - least, 0)
        return place(area, self.log_aspect(draw[1]), draw[2:], inside(grid), grid)


def _add(block: MaskRows, masked: MaskRows, last: MaskRows, where: NDArray[np.bool_]) -> tuple[MaskRows, MaskRows]:
    """Add a block to the masks selected by `where`; the patches that it adds are their new last block."""
    new = (block * where) & ~masked
    return masked | new, (last * ~where) | new


@dataclass(frozen=True)
class Rolled(Blockwise):
    """`Blockwise` masks rolled by a random number of rows and columns, as by `numpy.roll`.

    So every patch is masked equally often. Without rolling, on 14 x 14 a corner is masked 4 % of the time, the centre
    73 %.

    Differs: not in the paper, nor in the released code.
    """

    def __call__(self, keys: Keys, grid: Grid) -> NDArray[np.bool_]:
        height, width = grid
        down, right = np.floor(quarters(fold(keys.reshape(-1), MAX_BLOCKS + 1))[:2] * np.array(grid)[:, None])
        row = (np.arange(height) - down.astype(np.int64)[:, None]) % height
        column = (np.arange(width) - right.astype(np.int64)[:, None]) % width
        source = (row[:, :, None] * width + column[:, None, :]).reshape(-1, height * width)
        return np.take_along_axis(super().__call__(keys, grid), source, axis=1)


def draw_masks(masking: Masking, keys: Keys, grid: Grid) -> Bool[np.ndarray, "B N"]:
    """The masks of these keys, compared with what the masking says of them: networks and losses rely on it.

    Raises:
        UsageError: they are no B x N booleans, or cover more patches than `count`, or fewer though `constant`.
    """
    masks, name, count = masking(keys, grid), type(masking).__name__, masking.count(grid)
    shape = (len(keys), grid[0] * grid[1])
    found = f"{type(masks).__name__} of {getattr(masks, 'dtype', 'no type')} and shape {tuple(np.shape(masks))}"
    require(
        isinstance(masks, np.ndarray) and masks.dtype == np.bool_ and masks.shape == shape,
        f"{name} draws a {found} for {shape[0]} keys on a grid of {grid[0]} x {grid[1]} patches",
        f"return a NumPy array of {shape[0]} x {shape[1]} booleans, row-major, True where masked",
    )
    sizes = masks.sum(axis=1)
    least, most = (int(size) for size in (sizes.min(initial=count), sizes.max(initial=0)))
    require(most <= count, f"{name} masks {most} patches, and its count says at most {count}", "let count say the most")
    require(
        least == count or not masking.constant,
        f"{name} masks {least} patches, and its count says {count} with constant = True",
        "mask as many in every image, or set constant to False and use a decoder that allows it: Linear",
    )
    return masks


def mask_index(mask: NDArray[np.bool_], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Positions of the masked patches in a static shape.

    Args:
        mask: B x N, True where masked.
        count: K, the most patches that a mask covers.

    Returns:
        B x K positions in rising order, and B x K weights: 1 for a masked patch, 0 for padding.
    """
    order = np.argsort(~mask, axis=1, kind="stable")[:, :count]
    weight = np.arange(count) < mask.sum(axis=1, keepdims=True)
    return order.astype(np.int64), weight.astype(np.float32)


def patch_mask(masked: Bool[np.ndarray, "H W"], grid: Grid) -> Bool[np.ndarray, "N"]:
    """A mask of pixels as one of patches: a patch is masked where at least half of its area is.

    Args:
        masked: of any size; a patch covers H / h by W / w of it, which need not be whole pixels.
    """
    rows, columns = (_overlaps(length, parts) for length, parts in zip(masked.shape, grid, strict=True))
    mask: NDArray[np.bool_] = rows @ masked @ columns.T >= 0.5 - 1e-9
    return mask.reshape(-1)


def _overlaps(length: int, parts: int) -> NDArray[np.float64]:
    """The share of each of `parts` equal parts of a line (rows) that lies in each of its `length` pixels (columns)."""
    ends, pixel = np.linspace(0, length, parts + 1), np.arange(length)
    inside = np.minimum(ends[1:, None], pixel + 1) - np.maximum(ends[:-1, None], pixel)
    return inside.clip(0) * parts / length


def component_sizes(masks: Bool[np.ndarray, "B N"], grid: Grid) -> Int[np.ndarray, "components"]:
    """The number of patches in every connected component of every mask, where patches are neighbours along an edge.

    Each masked patch starts with a number of its own; the highest number spreads through its component.
    """
    cells = masks.reshape(-1, *grid)
    number = np.arange(1, cells.size + 1).reshape(cells.shape) * cells
    while True:
        spread = number.copy()
        np.maximum(spread[:, 1:], number[:, :-1], out=spread[:, 1:])
        np.maximum(spread[:, :-1], number[:, 1:], out=spread[:, :-1])
        np.maximum(spread[:, :, 1:], number[:, :, :-1], out=spread[:, :, 1:])
        np.maximum(spread[:, :, :-1], number[:, :, 1:], out=spread[:, :, :-1])
        spread *= cells
        if np.array_equal(spread, number):
            return np.unique(number[cells], return_counts=True)[1]
        number = spread
