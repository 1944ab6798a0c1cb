"""The Gumbel-softmax relaxation."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from smalti.core.rng import fold, signed
from smalti.functional.gumbel_relaxation import gumbel_softmax, straight_through
from smalti.functional.noise import gumbel_noise
from tests import oracles


@given(st.integers(0, 1000), st.integers(2, 9), st.floats(0.05, 5))
def test_a_sample_is_a_distribution_and_equals_the_equation(seed: int, vocab_size: int, temperature: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits, gumbel = torch.randn(2, vocab_size, generator=rng, dtype=torch.float64)
    sample = gumbel_softmax(logits, gumbel, temperature)
    assert sample.tolist() == pytest.approx(oracles.gumbel_softmax(logits.numpy(), gumbel.numpy(), temperature))
    assert float(sample.sum()) == pytest.approx(1)
    assert float(sample.min()) >= 0


def test_temperature_may_be_a_tensor(rng: torch.Generator) -> None:
    logits, gumbel = torch.randn(2, 3, 5, generator=rng)
    assert torch.equal(gumbel_softmax(logits, gumbel, torch.tensor(0.5)), gumbel_softmax(logits, gumbel, 0.5))


def test_a_cold_sample_is_one_hot_at_the_highest_noisy_score(rng: torch.Generator) -> None:
    logits, gumbel = torch.randn(2, 20, 6, generator=rng)
    sample = gumbel_softmax(logits, gumbel, 1e-4)
    assert torch.equal(sample.argmax(-1), (logits + gumbel).argmax(-1))
    assert float(sample.max(-1).values.min()) > 0.99


def test_cold_samples_follow_the_categorical_distribution() -> None:
    q = torch.tensor([0.5, 0.3, 0.15, 0.05])
    gumbel = gumbel_noise(torch.from_numpy(signed(fold(3, np.arange(20_000)))), 4)
    share = gumbel_softmax(q.log().expand(20_000, 4), gumbel, 0.01).mean(0)
    assert share.tolist() == pytest.approx(q.tolist(), abs=0.012)


def test_gradient_equals_finite_differences_of_the_equation(rng: torch.Generator) -> None:
    logits, gumbel, direction = torch.randn(3, 6, generator=rng, dtype=torch.float64)
    logits.requires_grad_(True)
    (gumbel_softmax(logits, gumbel, 0.7) * direction).sum().backward()
    assert logits.grad is not None

    def value(scores: np.ndarray) -> float:
        sample = oracles.gumbel_softmax(scores, gumbel.numpy(), 0.7)
        return float(np.dot(sample, direction.numpy()))

    at, step = logits.detach().numpy(), 1e-6 * np.eye(6)
    expected = [(value(at + step[i]) - value(at - step[i])) / 2e-6 for i in range(6)]
    assert logits.grad.tolist() == pytest.approx(expected, abs=1e-8)


def test_a_value_goes_straight_through_and_its_gradient_to_the_point(rng: torch.Generator) -> None:
    points, values, direction = torch.randn(3, 4, 5, generator=rng, dtype=torch.float64)
    points.requires_grad_(True)
    passed = straight_through(values, points)
    torch.testing.assert_close(passed.detach(), values)
    (passed * direction).sum().backward()
    assert points.grad is not None
    assert torch.equal(points.grad, direction)
