"""Masks: exactly as many patches as asked for, in blocks, as functions of the key."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from smalti.core.contracts import Masking
from smalti.core.errors import UsageError
from smalti.core.rng import fold, uniform
from smalti.functional.masking import Blockwise, Random, mask_index
from tests import oracles
from tests.contracts import check_masking

grids = st.tuples(st.integers(1, 20), st.integers(1, 20)).filter(lambda grid: grid != (1, 1))
ratios = st.floats(0.01, 0.99)


@pytest.mark.parametrize("masking", [Random(), Blockwise(), Blockwise(0.75), Blockwise(min_patches=4, min_aspect=1.0)])
def test_contract(masking: Masking) -> None:
    check_masking(masking)


@pytest.mark.parametrize("kind", [Random, Blockwise])
@given(grid=grids, ratio=ratios, seed=st.integers(0, 2**63))
def test_every_mask_hides_exactly_count_patches(kind: type, grid: tuple[int, int], ratio: float, seed: int) -> None:
    masking = kind(ratio=ratio)
    masks = masking(fold(seed, np.arange(5)), grid)
    assert masks.sum(axis=1).tolist() == [masking.count(grid)] * 5


@pytest.mark.parametrize("kind", [Random, Blockwise])
@given(grid=grids, ratio=ratios)
def test_count_is_the_ratio_but_never_none_and_never_all(kind: type, grid: tuple[int, int], ratio: float) -> None:
    patches = grid[0] * grid[1]
    count = kind(ratio=ratio).count(grid)
    assert 1 <= count <= patches - 1
    assert abs(count - ratio * patches) <= 1


def test_the_default_hides_40_percent_of_14_by_14() -> None:
    assert Blockwise().count((14, 14)) == 78


@given(grid=grids, min_patches=st.integers(1, 1000), min_aspect=st.floats(0.01, 1))
def test_blocks_that_can_never_fit_still_end_in_a_full_mask(
    grid: tuple[int, int], min_patches: int, min_aspect: float
) -> None:
    masking = Blockwise(min_patches=min_patches, min_aspect=min_aspect)
    assert masking(fold(np.arange(3)), grid).sum(axis=1).tolist() == [masking.count(grid)] * 3


@given(grid=grids, seed=st.integers(0, 1000))
def test_blockwise_equals_the_loop_over_cells(grid: tuple[int, int], seed: int) -> None:
    masking = Blockwise(min_patches=2)
    keys = fold(seed, np.arange(4))
    for key, mask in zip(keys, masking(keys, grid), strict=True):

        def draw(number: int, key: np.uint64 = key) -> list[float]:
            return list(uniform(fold(key, number), 5))

        expected = oracles.blockwise_mask(draw, grid, masking.count(grid), masking.least_block(grid), 0.3)
        if expected.sum() == masking.count(grid):  # else a hundred blocks did not do
            assert np.array_equal(mask, expected)


@given(grid=st.tuples(st.integers(2, 20), st.integers(2, 20)), seed=st.integers(0, 10**6), missing=st.integers(1, 400))
def test_blocks_are_rectangles_strictly_inside_the_grid(grid: tuple[int, int], seed: int, missing: int) -> None:
    blocks = Blockwise()._block(uniform(fold(seed, np.arange(20)), 5), np.full(20, missing), grid)
    for block in blocks:
        rows, columns = np.flatnonzero(block.any(axis=1)), np.flatnonzero(block.any(axis=0))
        assert block.sum() == len(rows) * len(columns)
        if len(rows):
            assert np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
            assert np.array_equal(columns, np.arange(columns[0], columns[0] + len(columns)))
            assert len(rows) < grid[0]
            assert len(columns) < grid[1]


def test_block_areas_and_aspects_are_in_their_ranges() -> None:
    blocks = Blockwise()._block(uniform(fold(np.arange(2000)), 5), np.full(2000, 78), (14, 14))
    blocks = blocks[blocks.any(axis=(1, 2))]
    heights, widths = blocks.any(axis=2).sum(axis=1), blocks.any(axis=1).sum(axis=1)
    areas = heights * widths
    assert 12 <= areas.min() <= 20  # 16, sides rounded
    assert 70 <= areas.max() <= 90  # 78, sides rounded
    assert (heights / widths).min() >= 0.2
    assert (heights / widths).max() <= 5
    assert np.log(heights / widths).mean() == pytest.approx(0, abs=0.05)  # as often upright as lying


def test_masks_of_blocks_have_fewer_borders_than_masks_of_single_patches() -> None:
    def borders(masks: np.ndarray) -> float:
        cells = masks.reshape(-1, 14, 14)
        return float((cells[:, 1:] != cells[:, :-1]).mean() + (cells[:, :, 1:] != cells[:, :, :-1]).mean())

    keys = fold(np.arange(200))
    assert borders(Blockwise()(keys, (14, 14))) < 0.5 * borders(Random()(keys, (14, 14)))


def test_blockwise_masks_favour_the_centre_and_treat_the_four_sides_alike() -> None:
    """As the released code does: a corner is hidden 4 % of the time, the centre 72 %."""
    share = Blockwise()(fold(1, np.arange(4000)), (14, 14)).mean(axis=0).reshape(14, 14)
    assert 0.6 < share[6:8, 6:8].mean() < 0.85
    assert share[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 0.12
    assert share[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 0.01
    assert np.abs(share - share[::-1]).max() < 0.06
    assert np.abs(share - share[:, ::-1]).max() < 0.06
    assert np.abs(share - share.T).max() < 0.06


def test_random_masks_hide_every_patch_equally_often() -> None:
    share = Random()(fold(2, np.arange(5000)), (6, 5)).mean(axis=0)
    assert np.abs(share - 0.4).max() < 0.03


@pytest.mark.parametrize("kind", [Random, Blockwise])
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_ratios_outside_0_and_1_are_refused(kind: type, ratio: float) -> None:
    with pytest.raises(UsageError, match=r"a mask ratio of .*; choose one between 0 and 1"):
        kind(ratio=ratio)


def test_other_impossible_settings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"an aspect ratio of 0.0; choose one in"):
        Blockwise(min_aspect=0.0)
    with pytest.raises(UsageError, match="a block of no patches; use min_patches of 1 or more"):
        Blockwise(min_patches=0)


@given(st.integers(1, 12), st.integers(0, 1000))
def test_mask_index_lists_hidden_patches_in_order_and_pads_with_weight_0(num_patches: int, seed: int) -> None:
    masks = np.random.default_rng(seed).random((4, num_patches)) < 0.4
    count = max(int(masks.sum(axis=1).max()), 1)
    index, weight = mask_index(masks, count)
    assert index.shape == weight.shape == (4, count)
    for mask, positions, weights in zip(masks, index, weight, strict=True):
        hidden = np.flatnonzero(mask)
        assert positions[: len(hidden)].tolist() == hidden.tolist()
        assert weights.tolist() == [1.0] * len(hidden) + [0.0] * (count - len(hidden))
