"""Noise: the hash against Python's integers, and its statistics. Nothing here is left to chance: the keys are fixed."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from smalti.core.rng import fold, signed
from smalti.functional.noise import gumbel_noise, uniform_noise
from tests import oracles


def keys(num: int, seed: int = 0) -> torch.Tensor:
    """Keys as the loader makes them: hashes of neighbouring counters."""
    return torch.from_numpy(signed(fold(seed, np.arange(num))))


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 4))
def test_uniform_noise_equals_the_hash_in_python_integers(key: int, stream: int) -> None:
    draws = uniform_noise(torch.tensor([key]), 5, stream)
    assert draws[0].tolist() == oracles.uniform_noise(key, 5, stream)


@given(st.integers(-(2**63), 2**63 - 1))
def test_uniform_noise_lies_in_the_open_interval(key: int) -> None:
    draws = uniform_noise(torch.tensor([key]), 64)
    assert float(draws.min()) > 0
    assert float(draws.max()) < 1


def test_one_by_one_equals_batched() -> None:
    batch = keys(6)
    assert torch.equal(torch.cat([uniform_noise(key[None], 9) for key in batch]), uniform_noise(batch, 9))


def test_more_draws_begin_with_the_fewer() -> None:
    assert torch.equal(uniform_noise(keys(3), 100)[:, :10], uniform_noise(keys(3), 10))


@pytest.mark.parametrize("by", ["key", "counter"])
def test_uniform_noise_is_uniform(by: str) -> None:
    """Kolmogorov-Smirnov at the 1 % level, along keys and along counters."""
    draws = uniform_noise(keys(50_000), 1) if by == "key" else uniform_noise(keys(1), 50_000)
    ordered = draws.flatten().double().sort().values
    distance = (ordered - (torch.arange(50_000) + 0.5) / 50_000).abs().max()
    assert float(distance) < 1.63 / math.sqrt(50_000)
    assert float(draws.double().mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 50_000))
    assert float(draws.double().var()) == pytest.approx(1 / 12, abs=0.002)


def pairs(kind: str, num: int = 40_000) -> tuple[torch.Tensor, torch.Tensor]:
    if kind == "neighbouring keys":
        draws = uniform_noise(keys(num + 1), 1)[:, 0]
        return draws[:-1], draws[1:]
    if kind == "neighbouring counters":
        draws = uniform_noise(keys(1), num + 1)[0]
        return draws[:-1], draws[1:]
    if kind == "first two draws of a key":
        draws = uniform_noise(keys(num), 2)
        return draws[:, 0], draws[:, 1]
    return uniform_noise(keys(num), 1)[:, 0], uniform_noise(keys(num), 1, stream=1)[:, 0]


@pytest.mark.parametrize(
    "kind", ["neighbouring keys", "neighbouring counters", "first two draws of a key", "two streams"]
)
def test_neighbours_are_independent(kind: str) -> None:
    """No correlation, and a flat 16 x 16 histogram of pairs (chi-square within 4 sigma of its mean)."""
    first, second = (draws.double() for draws in pairs(kind))
    correlation = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
    assert abs(correlation) < 4 / math.sqrt(len(first))
    cells = (first * 16).long() * 16 + (second * 16).long()
    expected = len(first) / 256
    chi_square = float(((torch.bincount(cells, minlength=256) - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 4 * math.sqrt(2 * 255)


def test_every_key_has_its_own_draws() -> None:
    assert len(torch.unique(uniform_noise(keys(500), 4), dim=0)) == 500


def test_gumbel_noise_is_the_double_logarithm_and_finite() -> None:
    draws = gumbel_noise(keys(40), 50)
    expected = -torch.log(-torch.log(uniform_noise(keys(40), 50).double()))
    torch.testing.assert_close(draws.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(draws).all()


def test_gumbel_noise_has_the_mean_and_variance_of_the_gumbel_distribution() -> None:
    draws = gumbel_noise(keys(1000), 200).double()
    assert float(draws.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(draws.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)


def test_a_walk_can_be_taken_in_parts() -> None:
    key, skip = torch.tensor([3, 1 << 40, -5]), torch.tensor([0, 7, 20])
    whole = uniform_noise(key, 25, stream=2)
    parts = uniform_noise(key, 5, stream=2, skip=skip)
    assert [part.tolist() for part in parts] == [
        row[s : s + 5].tolist() for row, s in zip(whole, [0, 7, 20], strict=True)
    ]
