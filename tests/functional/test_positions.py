"""Positions as sines and cosines, and positions of another grid."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.functional.positions import resize_positions, sincos_2d
from tests import oracles


def test_every_value_is_the_wave_it_should_be() -> None:
    table = sincos_2d((3, 4), 8, amplitude=0.5)
    assert table.shape == (12, 8)
    for row in range(3):
        for column in range(4):
            angles = [place * 2.0 * 100.0 ** (-k / 2) for place in (row, column) for k in range(2)]
            waves = [(math.sin(angle), math.cos(angle)) for angle in angles]
            expected = [waves[i][w] for i, w in ((0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0), (2, 1), (3, 1))]
            assert table[4 * row + column].tolist() == pytest.approx([0.5 * value for value in expected], abs=1e-6)


def test_all_places_are_told_apart_and_neighbours_are_most_alike() -> None:
    table = sincos_2d((14, 14), 64, amplitude=0.1)
    distance = torch.cdist(table, table) + 1e9 * torch.eye(196)
    assert float(distance.min()) > 0.05
    for patch, nearest in enumerate(distance.argmin(1).tolist()):
        assert abs(patch // 14 - nearest // 14) + abs(patch % 14 - nearest % 14) == 1


grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(grids, grids)
def test_resized_positions_are_the_bicubic_ones_and_that_of_s_stays(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.randn(1, 1 + old[0] * old[1], 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    resized = resize_positions(table, old, new)
    assert torch.equal(resized[:, 0], table[:, 0])
    expected = oracles.bicubic(table[0, 1:].reshape(*old, 2).numpy(), new)
    torch.testing.assert_close(resized[0, 1:], torch.from_numpy(expected).reshape(-1, 2), rtol=0, atol=1e-12)


@given(grids)
def test_positions_of_the_same_grid_stay_as_they_are(grid: tuple[int, int]) -> None:
    table = torch.randn(1, 1 + grid[0] * grid[1], 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_positions(table, grid, grid), table)
