"""The published maskings: the statistics that were measured of them, and every mask against a loop over cells."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from smalti.core.contracts import Masking
from smalti.core.errors import UsageError
from smalti.core.rng import fold, quarters
from smalti.functional.published_masking import Algorithm1, Release
from tests import oracles
from tests.contracts import check_masking

grids = st.tuples(st.integers(1, 16), st.integers(1, 16)).filter(lambda grid: grid != (1, 1))
ratios = st.floats(0.01, 0.99)
least_blocks = st.sampled_from([None, 1, 2, 16, 300])
aspects = st.sampled_from([0.3, 1.0, 0.02])


@pytest.mark.parametrize(
    "masking",
    [
        *(Release(), Release(0.9), Release(min_patches=4), Release(min_aspect=0.1)),
        *(Algorithm1(), Algorithm1(0.9), Algorithm1(min_patches=4), Algorithm1(min_aspect=0.1)),
    ],
)
def test_contract(masking: Masking) -> None:
    check_masking(masking)


def test_the_release_has_its_published_statistics() -> None:
    """20 000 masks of the released code: mean 74.47, deviation 0.99, 64 to 75; 75 in 66.6 %, 70 or more in 99.6 %."""
    masks = Release(num_masked=75)(fold(0, np.arange(20_000)), (14, 14))
    masked, share = masks.sum(axis=1), masks.mean(axis=0).reshape(14, 14)
    assert masked.mean() == pytest.approx(74.47, abs=0.05)
    assert masked.std() == pytest.approx(0.99, abs=0.04)
    assert 60 <= masked.min() <= 66
    assert masked.max() == 75
    assert (masked == 75).mean() == pytest.approx(0.666, abs=0.01)
    assert (masked >= 70).mean() == pytest.approx(0.996, abs=0.002)
    assert np.percentile(masked, [1, 5, 25, 50]).tolist() == [70, 72, 74, 75]
    assert share[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(0.040, abs=0.005)
    assert share[6:8, 6:8].mean() == pytest.approx(0.715, abs=0.01)
    assert share[[0, -1, 7, 7], [7, 7, 0, -1]].mean() == pytest.approx(0.19, abs=0.01)


def test_algorithm_1_has_its_published_statistics() -> None:
    """Mean 82.5, deviation 3.2, 79 to 96, in its documented reading."""
    masked = Algorithm1()(fold(0, np.arange(20_000)), (14, 14)).sum(axis=1)
    assert masked.mean() == pytest.approx(82.5, abs=0.1)
    assert masked.std() == pytest.approx(3.2, abs=0.1)
    assert masked.min() == 79
    assert 94 <= masked.max() <= 96


@given(grids, ratios, st.integers(0, 1000), least_blocks, aspects)
def test_release_equals_the_loop_over_cells(
    grid: tuple[int, int], ratio: float, seed: int, min_patches: int | None, min_aspect: float
) -> None:
    _check_release(Release(ratio, min_patches, min_aspect), fold(seed, np.arange(4)), grid)


@given(grids, ratios, st.integers(0, 1000), least_blocks, aspects)
def test_algorithm_1_equals_the_loop_over_cells(
    grid: tuple[int, int], ratio: float, seed: int, min_patches: int | None, min_aspect: float
) -> None:
    _check_algorithm1(Algorithm1(ratio, min_patches, min_aspect), fold(seed, np.arange(4)), grid)


@pytest.mark.parametrize("grid", [(14, 14), (3, 64), (2, 65), (65, 2), (1, 70)])
def test_the_published_grid_and_wide_grids_equal_the_loop_over_cells(grid: tuple[int, int]) -> None:
    _check_release(Release(), fold(np.arange(12)), grid)
    _check_algorithm1(Algorithm1(), fold(np.arange(12)), grid)


def _check_release(masking: Release, keys: np.ndarray, grid: tuple[int, int]) -> None:
    for key, mask in zip(keys, masking(keys, grid), strict=True):

        def draw(number: int, key: np.uint64 = key) -> list[float]:
            return list(quarters(fold(key, number)))

        spare = divmod(int(fold(key, 10)) % (grid[0] * grid[1]), grid[1])
        least = masking.least_block(grid)
        expected = oracles.release_mask(draw, grid, masking.count(grid), least, masking.min_aspect, spare)
        assert np.array_equal(mask, expected)


def _check_algorithm1(masking: Algorithm1, keys: np.ndarray, grid: tuple[int, int]) -> None:
    target, fewest = masking.ratio * (grid[0] * grid[1]), masking.fewest(grid)
    for key, mask in zip(keys, masking(keys, grid), strict=True):

        def draw(number: int, key: np.uint64 = key) -> list[float]:
            return list(quarters(fold(key, number)))

        least = masking.least_block(grid)
        expected = oracles.algorithm1_mask(draw, grid, target, fewest, least, masking.min_aspect)
        assert np.array_equal(mask, expected)


@given(grid=grids, seed=st.integers(0, 2**63), data=st.data(), min_patches=least_blocks, min_aspect=aspects)
def test_the_release_hides_at_most_so_many_and_algorithm_1_at_least(
    grid: tuple[int, int], seed: int, data: st.DataObject, min_patches: int | None, min_aspect: float
) -> None:
    num_masked = data.draw(st.integers(1, grid[0] * grid[1] - 1))
    keys = fold(seed, np.arange(20))
    release = Release(0.5, min_patches, min_aspect, num_masked=num_masked)
    algorithm1 = Algorithm1(0.5, min_patches, min_aspect, num_masked=num_masked)
    fewer, more = release(keys, grid).sum(axis=1), algorithm1(keys, grid).sum(axis=1)
    assert release.count(grid) == algorithm1.fewest(grid) == num_masked
    assert 1 <= fewer.min() <= fewer.max() <= num_masked <= more.min()
    assert more.max() <= algorithm1.count(grid) < grid[0] * grid[1]


@given(grid=grids, ratio=ratios, seed=st.integers(0, 2**63))
def test_algorithm_1_stops_above_its_ratio(grid: tuple[int, int], ratio: float, seed: int) -> None:
    masked, patches = Algorithm1(ratio)(fold(seed, np.arange(20)), grid).sum(axis=1), grid[0] * grid[1]
    assert ((masked > ratio * patches) | (masked == patches - 1)).all()
    assert masked.max() <= Algorithm1(ratio).count(grid) < patches


def test_the_most_that_algorithm_1_hides_is_no_wild_guess() -> None:
    """A block of area 16 has at most 20 patches, 4 x 5; 18 were added to 78 in 20 000 masks."""
    assert Algorithm1().count((14, 14)) == 98
    masked = Algorithm1()(fold(2, np.arange(100_000)), (7, 7)).sum(axis=1)
    assert masked.max() <= Algorithm1().count((7, 7)) <= masked.max() + 1


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_small_masks_are_never_empty(count: int) -> None:
    """The released code leaves 77, 55, 37 and 32 % of these empty: its least block is larger than the whole mask."""
    assert Release(num_masked=count)(fold(0, np.arange(20_000)), (14, 14)).any(axis=1).all()


def test_where_no_block_fits_a_patch_drawn_at_random_is_hidden() -> None:
    masks = Release(min_patches=1000)(fold(3, np.arange(6000)), (2, 30))
    assert (masks.sum(axis=1) == 1).all()
    times = masks.sum(axis=0)
    assert ((times - 100) ** 2 / 100).sum() < 98.3  # chi-square of 59 degrees, 0.1 %


@pytest.mark.parametrize("kind", [Release, Algorithm1])
def test_impossible_settings_are_refused(kind: type) -> None:
    with pytest.raises(UsageError, match=r"^a mask ratio of 1.0; choose one between 0 and 1$"):
        kind(1.0)
    with pytest.raises(UsageError, match=r"^an aspect ratio of 0.0; choose one in \(0, 1\]$"):
        kind(min_aspect=0.0)
    with pytest.raises(UsageError, match=r"^200 patches to mask in a grid of 14 x 14 patches; choose 1 to 195$"):
        kind(num_masked=200).count((14, 14))
    with pytest.raises(UsageError, match=r"^nothing to mask in a grid of 1 x 1 patches; use at least two patches$"):
        kind()(fold(np.arange(2)), (1, 1))


@pytest.mark.parametrize("kind", [Release, Algorithm1])
@pytest.mark.parametrize("num", [0, 1, 4097])
def test_a_mask_is_the_same_in_a_block_of_any_size(kind: type, num: int) -> None:
    keys = fold(3, np.arange(num))
    masks = kind()(keys, (7, 7))
    assert masks.shape == (num, 49)
    for i in {0, num // 2, num - 1} if num else ():
        assert np.array_equal(masks[i], kind()(keys[i : i + 1], (7, 7))[0])
