"""Masks: exactly as many patches as asked for, in blocks, as functions of the key."""

import hashlib
import random
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from smalti.core.config import from_json, to_json
from smalti.core.contracts import Masking
from smalti.core.errors import UsageError
from smalti.core.rng import Keys, fold, quarters
from smalti.functional.masking import Blockwise, Random, Rolled, draw_masks, mask_index, patch_mask
from tests import oracles
from tests.contracts import check_masking

grids = st.tuples(st.integers(1, 20), st.integers(1, 20)).filter(lambda grid: grid != (1, 1))
ratios = st.floats(0.01, 0.99)


@pytest.mark.parametrize(
    "masking",
    [Random(), Blockwise(), Blockwise(0.75), Blockwise(min_patches=4, min_aspect=1.0), Rolled()],
)
def test_contract(masking: Masking) -> None:
    check_masking(masking)


@pytest.mark.parametrize("kind", [Random, Blockwise, Rolled])
@given(grid=grids, ratio=ratios, seed=st.integers(0, 2**63))
def test_every_mask_hides_exactly_count_patches(kind: type, grid: tuple[int, int], ratio: float, seed: int) -> None:
    masking = kind(ratio=ratio)
    masks = masking(fold(seed, np.arange(5)), grid)
    assert masks.sum(axis=1).tolist() == [masking.count(grid)] * 5


@pytest.mark.parametrize("kind", [Random, Blockwise, Rolled])
@given(grid=grids, ratio=ratios)
def test_count_is_the_ratio_but_never_none_and_never_all(kind: type, grid: tuple[int, int], ratio: float) -> None:
    patches = grid[0] * grid[1]
    count = kind(ratio=ratio).count(grid)
    assert 1 <= count <= patches - 1
    assert abs(count - ratio * patches) <= 1


@pytest.mark.parametrize("kind", [Random, Blockwise, Rolled])
@given(grid=grids, seed=st.integers(0, 1000), data=st.data())
def test_a_number_of_patches_takes_the_place_of_the_ratio(
    kind: type, grid: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    num_masked = data.draw(st.integers(1, grid[0] * grid[1] - 1))
    masking = kind(ratio=0.9, num_masked=num_masked)
    assert masking.count(grid) == num_masked
    assert masking(fold(seed, np.arange(5)), grid).sum(axis=1).tolist() == [num_masked] * 5


@pytest.mark.parametrize(
    ("masking", "digest"),
    [
        (Random(), "08dc02d4fb6362f2"),
        (Random(0.7), "4c3157adfb1ff004"),
        (Blockwise(), "35837b63462d6e18"),
        (Blockwise(0.75), "cbcdda5a55f8cc6b"),
        (Blockwise(0.5, 4, 0.6), "4af00a6b38a5df22"),
    ],
)
def test_the_mask_of_a_key_is_what_it_was_in_the_first_version(masking: Masking, digest: str) -> None:
    """Results that were written down, and runs that are resumed, depend on it."""
    seen = hashlib.sha256()
    for grid in ((14, 14), (7, 7), (3, 8), (1, 16), (20, 20), (4, 70), (1, 2)):
        seen.update(np.packbits(masking(fold(5, np.arange(500)), grid)).tobytes())
    assert seen.hexdigest()[:16] == digest


def test_a_run_folder_of_the_first_version_can_be_read() -> None:
    old = {"kind": "Blockwise", "ratio": 0.4, "min_patches": None, "min_aspect": 0.3}
    either: Any = Random | Blockwise | Rolled
    assert from_json(either, old) == Blockwise()
    assert from_json(either, {"kind": "Random", "ratio": 0.3}) == Random(0.3)
    assert from_json(either, to_json(Rolled(num_masked=9))) == Rolled(num_masked=9)


def test_the_default_hides_40_percent_of_14_by_14() -> None:
    assert Blockwise().count((14, 14)) == 78


@given(grid=grids, min_patches=st.integers(1, 1000), min_aspect=st.floats(0.01, 1))
def test_blocks_that_can_never_fit_still_end_in_a_full_mask(
    grid: tuple[int, int], min_patches: int, min_aspect: float
) -> None:
    masking = Blockwise(min_patches=min_patches, min_aspect=min_aspect)
    assert masking(fold(np.arange(3)), grid).sum(axis=1).tolist() == [masking.count(grid)] * 3


@given(grid=grids, ratio=ratios, seed=st.integers(0, 1000), min_patches=st.sampled_from([1, 2, 5, 300]))
def test_blockwise_equals_the_loop_over_cells(grid: tuple[int, int], ratio: float, seed: int, min_patches: int) -> None:
    _check_against_the_loop(Blockwise(ratio, min_patches), fold(seed, np.arange(4)), grid)


@pytest.mark.parametrize("grid", [(3, 64), (64, 3), (2, 65), (65, 2), (4, 150), (1, 70)])
def test_wide_and_tall_grids_equal_the_loop_over_cells(grid: tuple[int, int]) -> None:
    _check_against_the_loop(Blockwise(0.6), fold(np.arange(12)), grid)


def _check_against_the_loop(masking: Blockwise, keys: np.ndarray, grid: tuple[int, int]) -> None:
    for key, mask in zip(keys, masking(keys, grid), strict=True):

        def draw(number: int, key: np.uint64 = key) -> list[float]:
            return list(quarters(fold(key, number)))

        by_column = bool(fold(key, 100) % 2)
        expected = oracles.blockwise_mask(
            draw, grid, masking.count(grid), masking.least_block(grid), masking.min_aspect, by_column
        )
        assert np.array_equal(mask, expected)


@pytest.mark.parametrize("num", [0, 1, 4095, 4096, 4097, 9000])
def test_a_mask_is_the_same_in_a_block_of_any_size(num: int) -> None:
    keys = fold(3, np.arange(num))
    masks = Blockwise()(keys, (7, 7))
    assert masks.shape == (num, 49)
    for i in {0, num // 2, num - 1} if num else ():
        assert np.array_equal(masks[i], Blockwise()(keys[i : i + 1], (7, 7))[0])


@given(grid=st.tuples(st.integers(2, 20), st.integers(2, 20)), seed=st.integers(0, 10**6), missing=st.integers(1, 400))
def test_blocks_are_strictly_inside_the_grid(grid: tuple[int, int], seed: int, missing: int) -> None:
    draw = quarters(fold(seed, np.arange(20)))
    corner, sides = Blockwise()._block(draw, np.full(20, missing, np.int32), grid)
    assert ((sides == 0).all(axis=0) | (sides >= 1).all(axis=0)).all()
    assert corner.min() >= 0
    assert (sides < np.array(grid)[:, None]).all()
    assert (corner + sides <= np.array(grid)[:, None]).all()


@pytest.mark.parametrize("missing", [78, 40, 16, 3])
def test_blocks_have_the_sides_that_theory_says_and_lie_everywhere_alike(missing: int) -> None:
    num = 40_000
    draw = quarters(fold(missing, np.arange(num)))
    corner, sides = Blockwise()._block(draw, np.full(num, missing, np.int32), (14, 14))
    fits = sides[0] > 0
    assert fits.mean() > 0.9
    expected = oracles.block_sides((14, 14), 16, max(missing, 16), 0.3)
    drawn = np.zeros((14, 14))
    np.add.at(drawn, tuple(sides[:, fits]), 1 / fits.sum())
    deviation = np.sqrt(expected * (1 - expected) / num)
    assert (np.abs(drawn - expected) < 5 * deviation + 0.0005).all()
    for side in (0, 1):  # where a block of 4 has 11 places, each is as likely
        places = np.bincount(corner[side, sides[side] == 4], minlength=11)
        assert len(places) == 11
        assert ((places - places.mean()) ** 2 / places.mean()).sum() < 29.6  # chi-square of 10 degrees, 0.1 %


def test_coverage_is_that_of_the_loop_with_another_generator() -> None:
    generator = random.Random(0)
    loop = np.zeros(196)
    for _ in range(1500):
        by_column = generator.random() < 0.5
        loop += oracles.blockwise_mask(
            lambda _: [generator.random() for _ in range(4)], (14, 14), 78, 16, 0.3, by_column
        )
    loop = _like_a_square(loop.reshape(14, 14) / 1500)
    ours = Blockwise()(fold(11, np.arange(20_000)), (14, 14)).mean(axis=0).reshape(14, 14)
    assert np.abs(ours - _like_a_square(ours)).max() < 0.03
    assert np.abs(_like_a_square(ours) - loop).max() < 0.03
    assert np.abs(_like_a_square(ours) - loop).mean() < 0.008


def _like_a_square(share: np.ndarray) -> np.ndarray:
    """The mean over the eight ways to turn and mirror a square."""
    turned = [np.rot90(share, quarter) for quarter in range(4)]
    return np.mean([*turned, *(turn.T for turn in turned)], axis=0)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("masking", [Random(), Blockwise()])
def test_masks_of_neighbouring_keys_are_independent(masking: Masking, raw: bool) -> None:
    """Neighbours overlap as much as the coverage map says that strangers do."""
    keys = np.arange(20_000, dtype=np.uint64) if raw else fold(0, np.arange(20_000))
    masks = masking(keys, (7, 7)).astype(float)
    strangers = (masks.mean(axis=0) ** 2).sum()
    overlaps = (masks[1:] * masks[:-1]).sum(axis=1)
    assert overlaps.mean() == pytest.approx(strangers, abs=5 * overlaps.std() / len(overlaps) ** 0.5)


def test_masks_of_blocks_have_fewer_borders_than_masks_of_single_patches() -> None:
    def borders(masks: np.ndarray) -> float:
        cells = masks.reshape(-1, 14, 14)
        return float((cells[:, 1:] != cells[:, :-1]).mean() + (cells[:, :, 1:] != cells[:, :, :-1]).mean())

    keys = fold(np.arange(200))
    assert borders(Blockwise()(keys, (14, 14))) < 0.5 * borders(Random()(keys, (14, 14)))


def test_blockwise_masks_favour_the_centre_and_treat_the_four_sides_alike() -> None:
    """As the released code does: a corner is masked 4 % of the time, the centre 72 %."""
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


@pytest.mark.parametrize("masking", [Random(num_masked=0), Blockwise(num_masked=4), Rolled(num_masked=-1)])
def test_a_number_that_does_not_fit_the_grid_is_refused(masking: Masking) -> None:
    with pytest.raises(UsageError, match=r"^-?\d patches to mask in a grid of 2 x 2 patches; choose 1 to 3$"):
        masking(fold(np.arange(2)), (2, 2))


@pytest.mark.parametrize("masking", [Random(), Blockwise(), Rolled()])
def test_a_single_patch_cannot_be_hidden_and_seen(masking: Masking) -> None:
    with pytest.raises(UsageError, match=r"^nothing to mask in a grid of 1 x 1 patches; use at least two patches$"):
        masking.count((1, 1))


@given(grid=grids, ratio=ratios, seed=st.integers(0, 1000))
def test_a_rolled_mask_is_a_blockwise_mask_that_wraps_around(grid: tuple[int, int], ratio: float, seed: int) -> None:
    keys = fold(seed, np.arange(3))
    for key, mask, rolled in zip(keys, Blockwise(ratio)(keys, grid), Rolled(ratio)(keys, grid), strict=True):
        draw = quarters(fold(key, 101))
        down, right = int(draw[0] * grid[0]), int(draw[1] * grid[1])
        assert np.array_equal(rolled.reshape(grid), np.roll(mask.reshape(grid), (down, right), (0, 1)))


@pytest.mark.parametrize("grid", [(14, 14), (5, 9), (1, 12)])
def test_rolled_masks_hide_every_patch_equally_often(grid: tuple[int, int]) -> None:
    num, masking = 20_000, Rolled()
    share = masking(fold(4, np.arange(num)), grid).mean(axis=0)
    expected = masking.count(grid) / (grid[0] * grid[1])
    deviation = (expected * (1 - expected) / num) ** 0.5
    assert np.abs(share - expected).max() < 4.5 * deviation
    assert share.std() < 1.5 * deviation


@given(st.integers(1, 12), st.integers(0, 1000))
def test_mask_index_lists_hidden_patches_in_order_and_pads_with_weight_0(num_patches: int, seed: int) -> None:
    masks = np.random.default_rng(seed).random((4, num_patches)) < 0.4
    count = max(int(masks.sum(axis=1).max()), 1)
    index, weight = mask_index(masks, count)
    assert index.shape == weight.shape == (4, count)
    for mask, positions, weights in zip(masks, index, weight, strict=True):
        masked = np.flatnonzero(mask)
        assert positions[: len(masked)].tolist() == masked.tolist()
        assert weights.tolist() == [1.0] * len(masked) + [0.0] * (count - len(masked))


@pytest.mark.parametrize(("size", "grid"), [((12, 12), (3, 4)), ((10, 10), (4, 4)), ((7, 5), (2, 3)), ((3, 4), (3, 4))])
def test_a_patch_is_masked_where_half_of_its_pixels_are(size: tuple[int, int], grid: tuple[int, int]) -> None:
    for seed in range(3):
        masked = np.random.default_rng(seed).random(size) < 0.5
        assert patch_mask(masked, grid).tolist() == oracles.patch_mask(masked, grid).tolist()


def test_half_a_patch_is_enough_and_a_pixel_a_patch_is_the_mask_itself() -> None:
    masked = np.zeros((4, 4), np.bool_)
    masked[:2, 0] = masked[2:, 2:] = True
    assert patch_mask(masked, (2, 2)).tolist() == [True, False, False, True]
    masked[0, 0] = False
    assert patch_mask(masked, (2, 2)).tolist() == [False, False, False, True]
    assert (patch_mask(masked, (4, 4)) == masked.reshape(-1)).all()


@dataclass(frozen=True)
class Given:
    """A masking of somebody else's: draws what it is given."""

    masks: Any
    constant: bool = True

    def count(self, grid: tuple[int, int]) -> int:
        return 2

    def __call__(self, keys: Keys, grid: tuple[int, int]) -> Any:
        return self.masks


GIVEN: Any = Given
"""Each has `constant` of its own, where the protocol has it of a class."""
TWO = np.array([[True, True, False, False, False, False]] * 3)
ONE_IN_THE_LAST = TWO & ~((np.arange(3) == 2)[:, None] & (np.arange(6) == 0))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.from_numpy(TWO), "Given draws a Tensor of torch.bool and shape .3, 6. for 3 keys on a grid of 2 x 3"),
        (TWO.astype(np.int64), "of int64 and shape .*; return a NumPy array of 3 x 6 booleans, row-major"),
        (TWO.reshape(3, 2, 3), r"of bool and shape \(3, 2, 3\)"),
        (TWO[:2], r"of bool and shape \(2, 6\)"),
        (~TWO, "Given masks 4 patches, and its count says at most 2"),
        (ONE_IN_THE_LAST, "Given masks 1 patches, and its count says 2 with constant = True; mask as many"),
    ],
)
def test_masks_that_are_not_what_the_masking_says_are_refused(masks: Any, message: str) -> None:
    """An encoder of visible patches would be shown masked ones, or not shown visible ones, and train."""
    with pytest.raises(UsageError, match=message):
        draw_masks(GIVEN(masks), fold(0, np.arange(3)), (2, 3))


def test_masks_that_are_what_the_masking_says_are_passed_on() -> None:
    keys = fold(0, np.arange(3))
    assert draw_masks(GIVEN(TWO), keys, (2, 3)) is TWO
    assert draw_masks(GIVEN(ONE_IN_THE_LAST, constant=False), keys, (2, 3)) is ONE_IN_THE_LAST
    assert draw_masks(Random(), keys[:0], (2, 3)).shape == (0, 6)
