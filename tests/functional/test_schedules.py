"""Schedules against the equations."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from smalti.core.errors import UsageError
from smalti.functional.schedules import Cosine, Ramp
from tests import oracles


@given(st.integers(1, 200), st.integers(0, 199), st.integers(0, 300), st.floats(0, 1), st.floats(0, 1))
def test_cosine_equals_the_equation(steps: int, warmup: int, step: int, peak: float, end: float) -> None:
    warmup = min(warmup, steps - 1)
    expected = oracles.cosine_schedule(step, peak, end, steps, warmup)
    assert Cosine(peak, end, steps, warmup)(step) == pytest.approx(expected, abs=1e-12)


def test_cosine_starts_at_zero_peaks_after_the_warmup_and_stays_at_its_end() -> None:
    schedule = Cosine(peak=2.0, end=0.5, steps=100, warmup=10)
    assert [schedule(step) for step in (0, 5, 10, 55, 100, 1000)] == pytest.approx([0, 1, 2, 1.25, 0.5, 0.5])


def test_cosine_without_warmup_starts_at_its_peak() -> None:
    assert Cosine(peak=1.0, end=0.1, steps=7)(0) == 1.0


@given(st.integers(2, 100))
def test_cosine_never_rises_after_the_warmup(steps: int) -> None:
    schedule = Cosine(1.0, 0.0, steps, warmup=steps // 2)
    values = [schedule(step) for step in range(steps // 2, steps + 2)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("steps", "warmup", "message"), [(0, 0, "of 0 steps"), (5, 5, "warm-up of 5"), (5, -1, "warm-up of -1")]
)
def test_cosine_refuses_impossible_lengths(steps: int, warmup: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Cosine(1.0, 0.0, steps, warmup)


def test_ramp_rises_linearly_and_stays() -> None:
    ramp = Ramp(end=6.6, steps=100)
    assert [ramp(step) for step in (0, 25, 50, 100, 500)] == pytest.approx([0, 1.65, 3.3, 6.6, 6.6])


def test_a_cosine_may_rise_as_the_kl_weight_of_dalle() -> None:
    """DALL-E, appendix A.2: β goes from 0 to 6.6 over 5 000 updates by a cosine, so at step 1 250 it is 0.97."""
    schedule = Cosine(0.0, 6.6, 5000)
    for step in (0, 1, 1250, 2500, 4999, 5000, 9000):
        done = min(step, 5000) / 5000
        assert schedule(step) == pytest.approx(6.6 * (1 - math.cos(math.pi * done)) / 2, abs=1e-12)
    assert schedule(0) == 0
    assert schedule(1250) == pytest.approx(0.9666, abs=1e-4)


def test_ramp_refuses_zero_steps() -> None:
    with pytest.raises(UsageError, match="a ramp of 0 steps; use at least 1"):
        Ramp(1.0, 0)
