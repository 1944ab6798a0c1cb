"""Confidence intervals against their definition, tables, and what they promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.evaluation.label_draws import mean_interval, mean_share_interval, share_interval, student_quantile
from tests import oracles


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_a_share_are_the_true_shares_that_it_is_1_96_deviations_from(of: tuple[int, int]) -> None:
    hits, count = of
    share = hits / count
    for end in share_interval(share, count):
        if 1e-12 < end < 1 - 1e-12:
            deviation = math.sqrt(end * (1 - end) / count)
            assert abs(share - end) / deviation == pytest.approx(1.959964, rel=1e-4)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423), (500, 1.9647)],
)
def test_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, abs=6e-5)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 9])
def test_95_percent_of_the_density_lie_within(freedom: int) -> None:
    within, whole = (oracles.student_mass(freedom, end) for end in (student_quantile(freedom), None))
    assert within / whole == pytest.approx(0.95, abs=1e-4)


def test_the_interval_of_a_mean() -> None:
    low, high = mean_interval([1.0, 2.0, 3.0, 4.0]) or (0.0, 0.0)
    assert (low + high) / 2 == pytest.approx(2.5)
    assert (high - low) / 2 == pytest.approx(3.1824 * 1.290994 / 2, rel=1e-4)


def test_a_single_draw_has_no_interval() -> None:
    assert mean_interval([0.5]) is None


def test_the_interval_holds_the_mean_in_95_of_100_cases() -> None:
    draws = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) * 3 + 7
    intervals = [mean_interval(row) or (0.0, 0.0) for row in draws.tolist()]
    held = sum(low < 7 < high for low, high in intervals) / 4000
    assert held == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_the_interval_of_a_mean_of_shares_is_of_shares_and_covers_what_the_other_does_there(
    shares: list[float],
) -> None:
    low, high = mean_share_interval(shares) or (-1.0, 2.0)
    wide_low, wide_high = mean_interval(shares) or (-1.0, 2.0)
    assert 0 <= low <= high <= 1
    assert (low, high) == (max(0.0, wide_low), min(1.0, wide_high))
    assert mean_share_interval(shares[:1]) is None
