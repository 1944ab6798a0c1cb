"""Finite scalar quantisation, against the list of all codes."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from smalti.functional.codebook import fsq_bound, fsq_ids, fsq_round, fsq_values
from tests import oracles

LEVELS = [torch.tensor(levels) for levels in ((4,), (3,), (8, 5, 5, 5), (7, 5, 5), (3, 3, 6), (8, 8, 5))]


@pytest.mark.parametrize("levels", LEVELS)
def test_numbers_and_codes_are_one_to_one(levels: Tensor) -> None:
    codes = oracles.scalar_codes(levels.tolist())
    ids = torch.arange(len(codes))
    values = fsq_values(ids, levels)
    torch.testing.assert_close(values, torch.tensor(codes))
    assert torch.equal(fsq_ids(values, levels), ids)
    assert torch.equal(fsq_round(values, levels), values)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_is_within_reach_and_nothing_else(levels: Tensor) -> None:
    """A grid of what an encoder may say, far beyond the range, meets every level of every dimension."""
    line = torch.linspace(-30, 30, 6001)
    for dim, count in enumerate(levels.tolist()):
        x = torch.zeros(len(line), len(levels))
        x[:, dim] = line
        values = fsq_round(fsq_bound(x, levels), levels)
        met = sorted({code[dim] for code in oracles.scalar_codes(levels.tolist())})
        assert values[:, dim].unique().tolist() == pytest.approx(met)
        assert len(met) == count
        assert (values[:, dim].diff() >= 0).all()


@pytest.mark.parametrize("levels", [torch.tensor([8, 5, 5, 5]), torch.tensor([4, 3])])
def test_random_inputs_hit_every_code(levels: Tensor, rng: torch.Generator) -> None:
    x = 1.2 * torch.randn(60_000, len(levels), generator=rng)
    assert len(fsq_ids(fsq_round(fsq_bound(x, levels), levels), levels).unique()) == len(
        oracles.scalar_codes(levels.tolist())
    )


@pytest.mark.parametrize("levels", LEVELS)
def test_zero_is_a_code_and_maps_to_itself(levels: Tensor) -> None:
    assert fsq_round(fsq_bound(torch.zeros(len(levels)), levels), levels).tolist() == [0.0] * len(levels)
    torch.testing.assert_close(fsq_bound(torch.zeros(len(levels)), levels), torch.zeros(len(levels)))


@given(st.lists(st.floats(-8, 8), min_size=4, max_size=4))
def test_a_value_is_at_most_half_a_level_away(x: list[float]) -> None:
    levels = torch.tensor([8, 5, 4, 3])
    point = fsq_bound(torch.tensor(x, dtype=torch.float64), levels)
    step = 1 / (levels // 2)
    assert ((fsq_round(point, levels) - point).abs() <= 0.5 * step + 1e-9).all()


def test_a_bounded_number_has_a_gradient() -> None:
    x = torch.zeros(4, requires_grad=True)
    fsq_bound(x, torch.tensor([8, 5, 5, 5])).sum().backward()
    assert x.grad is not None
    assert (x.grad > 0.3).all()
