"""Relative positions: rows of the table, the bias, and tables of another grid."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.functional.positions import (
    bias_rows,
    geometric_places,
    num_rows,
    position_bias,
    relative_position_index,
    resize_table,
    spline_weights,
)
from tests import oracles

GRIDS = [(1, 1), (1, 4), (3, 2), (2, 3), (4, 4)]
grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


@pytest.mark.parametrize("grid", GRIDS)
def test_every_pair_has_the_row_of_its_offset(grid: tuple[int, int]) -> None:
    index = relative_position_index(grid)
    size = 1 + grid[0] * grid[1]
    assert index.shape == (size, size)
    for query in range(size):
        for key in range(size):
            assert int(index[query, key]) == oracles.relative_row(grid, query, key)


@given(grids)
def test_all_rows_are_used(grid: tuple[int, int]) -> None:
    """Of the table of a single patch as well: one offset and three rows of [S]."""
    assert relative_position_index(grid).unique().tolist() == list(range(num_rows(grid)))


def test_the_table_of_the_release_has_732_rows() -> None:
    assert num_rows((14, 14)) == 732


def test_the_bias_is_the_row_of_each_pair(rng: torch.Generator) -> None:
    table, index = torch.randn(num_rows((2, 3)), 5, generator=rng), relative_position_index((2, 3))
    bias = position_bias(table, index)
    assert bias.shape == (5, 7, 7)
    for query in range(7):
        for key in range(7):
            assert torch.equal(bias[:, query, key], table[index[query, key]])


def test_the_gradient_of_the_table_is_the_same_on_any_number_of_threads(rng: torch.Generator) -> None:
    index, gradient = relative_position_index((14, 14)), torch.randn(3, 197, 197, generator=rng)
    gradients = []
    for threads in (1, 2, 2, 2):
        torch.set_num_threads(threads)
        table = torch.zeros(732, 3, requires_grad=True)
        position_bias(table, index).backward(gradient)
        assert table.grad is not None
        gradients.append(table.grad)
    torch.set_num_threads(1)
    assert all(torch.equal(gradients[0], other) for other in gradients)


def test_the_bias_of_some_positions_is_their_rows_and_has_the_same_gradient_on_any_number_of_threads(
    rng: torch.Generator,
) -> None:
    values, gradient = torch.randn(3, 65, 65, generator=rng), torch.randn(8, 3, 26, 65, generator=rng)
    at = torch.stack([torch.randperm(65, generator=rng)[:26] for _ in range(8)])
    gradients = []
    for threads in (1, 2, 2, 2):
        torch.set_num_threads(threads)
        bias = values.clone().requires_grad_()
        some = bias_rows(bias, at)
        some.backward(gradient)
        assert bias.grad is not None
        gradients.append(bias.grad)
    torch.set_num_threads(1)
    assert all(torch.equal(some[b], values[:, at[b]]) for b in range(8))
    expected = torch.zeros(3, 65, 65, dtype=torch.float64)
    for b in range(8):
        expected[:, at[b]] += gradient[b]
    torch.testing.assert_close(gradients[0].double(), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(gradients[0], other) for other in gradients)


@given(grids)
def test_a_table_of_the_same_grid_stays_as_it_is(grid: tuple[int, int]) -> None:
    table = torch.randn(num_rows(grid), 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_table(table, grid, grid), table)


@given(grids, grids)
def test_a_resized_table_is_the_spline_at_the_geometric_places(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.randn(num_rows(old), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert np.abs(resize_table(table, old, new).numpy() - oracles.resize_table(table.numpy(), old, new)).max() < 1e-9


@given(grids, grids)
def test_a_symmetric_table_stays_symmetric(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.randn(num_rows(old), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table[:-3] += table[:-3].flip(0)
    resized = resize_table(table, old, new)
    torch.testing.assert_close(resized[:-3], resized[:-3].flip(0))
    assert torch.equal(resized[-3:], table[-3:])


@pytest.mark.parametrize(("old", "new"), [((14, 14), (24, 24)), ((14, 14), (32, 32)), ((5, 4), (8, 5))])
def test_a_cubic_of_the_old_places_becomes_that_cubic_of_the_new_ones(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    def cubic(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        y, x = rows[:, None] / new[0], columns[None] / new[1]
        return (1 + y - 2 * y**2 + 3 * y**3) * (2 - x + x**2)

    def places(side: int, other: int) -> torch.Tensor:
        half = geometric_places(side - 1, other - 1)
        return torch.cat([-half.flip(0), torch.zeros(1, dtype=torch.float64), half])

    known = cubic(places(old[0], new[0]), places(old[1], new[1]))
    expected = cubic(torch.arange(1.0 - new[0], new[0]).double(), torch.arange(1.0 - new[1], new[1]).double())
    table = torch.cat([known.reshape(-1, 1), torch.zeros(3, 1, dtype=torch.float64)])
    torch.testing.assert_close(resize_table(table, old, new)[:-3, 0], expected.flatten(), rtol=0, atol=1e-4)


def test_the_last_old_offset_meets_the_last_new_one_within_the_range_of_the_ratio() -> None:
    assert float(geometric_places(13, 23)[-1]) == pytest.approx(23, abs=1e-3)
    assert float(geometric_places(13, 13)[-1]) == pytest.approx(oracles.geometric_places(13, 13)[-1])
    assert geometric_places(13, 5).diff().tolist() == pytest.approx([1.01**k for k in range(1, 13)], abs=1e-4)
    assert geometric_places(3, 100).tolist() == pytest.approx([1, 2.5, 4.75], abs=1e-4)


def test_a_spline_goes_through_its_places_and_stays_outside_of_them(rng: torch.Generator) -> None:
    places = torch.tensor([-4.0, -2.5, -1.0, 0.0, 1.0, 2.5, 4.0], dtype=torch.float64)
    torch.testing.assert_close(spline_weights(places, places), torch.eye(7, dtype=torch.float64))
    beyond = spline_weights(places, torch.tensor([-9.0, 4.5], dtype=torch.float64))
    torch.testing.assert_close(beyond, torch.eye(7, dtype=torch.float64)[[0, 6]])


def test_half_precision_tables_stay_so() -> None:
    table = torch.ones(num_rows((2, 2)), 2, dtype=torch.bfloat16)
    assert torch.equal(resize_table(table, (2, 2), (3, 4)), torch.ones(num_rows((3, 4)), 2, dtype=torch.bfloat16))
