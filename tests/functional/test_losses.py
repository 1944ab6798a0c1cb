"""Losses against the equations."""

import math
from typing import Literal

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from smalti.functional.losses import (
    Likelihood,
    absolute_error,
    class_cross_entropy,
    cosine_distance,
    grey_level_nll,
    kl_to_uniform,
    kl_weight,
    label_cross_entropy,
    logit_laplace_nll,
    marginal_entropy,
    masked_token_loss,
    most_likely_pixels,
    patch_error,
    pixel_cross_entropy,
    reconstruction_loss,
    soft_cross_entropy,
    squared_error,
    weights_of_equal_images,
)
from tests import oracles


def test_masked_token_loss_is_the_sum_over_masked_positions(rng: torch.Generator) -> None:
    logits = 3 * torch.randn(4, 5, 7, generator=rng)
    target = torch.randint(7, (4, 5), generator=rng)
    weight = (torch.rand(4, 5, generator=rng) < 0.6).float()
    nats, count = masked_token_loss(logits, target, weight)
    expected_nats, expected_count = oracles.masked_token_loss(logits.double().numpy(), target.numpy(), weight.numpy())
    assert float(nats) == pytest.approx(expected_nats, rel=1e-5)
    assert float(count) == expected_count


def test_masked_token_loss_of_equal_scores_is_ln_v() -> None:
    nats, count = masked_token_loss(torch.zeros(2, 3, 8192), torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3))
    assert float(nats / count) == pytest.approx(math.log(8192), rel=1e-6)


def test_padding_has_no_part_in_the_loss_or_its_gradient(rng: torch.Generator) -> None:
    logits = torch.randn(1, 4, 6, generator=rng, requires_grad=True)
    weight = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    nats, _ = masked_token_loss(logits, torch.zeros(1, 4, dtype=torch.int64), weight)
    nats.backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad[0, 2:]) == 0
    assert torch.count_nonzero(logits.grad[0, :2]) == 12


def test_masked_token_loss_of_half_precision_scores_is_summed_in_fp32(rng: torch.Generator) -> None:
    logits = torch.randn(2, 50, 16, generator=rng).bfloat16()
    target, weight = torch.zeros(2, 50, dtype=torch.int64), torch.ones(2, 50)
    nats, _ = masked_token_loss(logits, target, weight)
    assert nats.dtype == torch.float32
    expected, _ = oracles.masked_token_loss(logits.double().numpy(), target.numpy(), weight.numpy())
    assert float(nats) == pytest.approx(expected, rel=1e-5)


def test_losses_of_half_precision_predictions_are_those_of_the_same_numbers_in_fp32(rng: torch.Generator) -> None:
    """Of bfloat16, in which a head predicts under autocast, neither logarithms nor sums are taken."""
    rough, other = torch.randn(6, 4, generator=rng).bfloat16(), torch.rand(6, 4, generator=rng)
    exact, shares, label_map = rough.float(), other / other.sum(1, keepdim=True), torch.arange(6).view(1, 2, 3) % 4
    found, expected = (
        [
            cosine_distance(predicted, other),
            soft_cross_entropy(predicted, other)[0],
            class_cross_entropy(predicted, shares, 0.1),
            label_cross_entropy(predicted, shares, 0.1),
            patch_error(predicted, other, "l1"),
            pixel_cross_entropy(predicted.t().reshape(1, 4, 2, 3), label_map)[0],
            most_likely_pixels(predicted.view(1, 4, 2, 3)),
        ]
        for predicted in (rough, exact)
    )
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_loss_of_two_halves_adds_up_to_the_loss_of_the_batch(rng: torch.Generator) -> None:
    logits, target = torch.randn(4, 3, 5, generator=rng), torch.randint(5, (4, 3), generator=rng)
    weight = torch.tensor([[1.0, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]])
    whole = masked_token_loss(logits, target, weight)
    halves = [masked_token_loss(logits[part], target[part], weight[part]) for part in (slice(0, 2), slice(2, 4))]
    assert float(whole[0]) == pytest.approx(float(halves[0][0] + halves[1][0]), rel=1e-6)
    assert float(whole[1]) == float(halves[0][1] + halves[1][1])


def test_soft_cross_entropy_is_that_of_the_equation_and_lies_above_the_entropy(rng: torch.Generator) -> None:
    logits, scores = 3 * torch.randn(2, 2, 3, 7, generator=rng)
    nats, entropy = soft_cross_entropy(logits, scores)
    for b in range(2):
        for k in range(3):
            expected = oracles.soft_cross_entropy(logits[b, k].double().numpy(), scores[b, k].double().numpy())
            assert (float(nats[b, k]), float(entropy[b, k])) == pytest.approx(expected, rel=1e-5)
    assert (nats > entropy).all()


def test_soft_cross_entropy_is_least_at_the_posterior_itself_and_that_of_a_token_where_there_is_no_doubt(
    rng: torch.Generator,
) -> None:
    scores = torch.randn(1, 2, 7, generator=rng, requires_grad=True)
    nats, entropy = soft_cross_entropy(scores, scores.detach())
    torch.testing.assert_close(nats, entropy)
    assert scores.grad is None
    nats.sum().backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.zeros_like(scores), atol=1e-6, rtol=0)
    target = torch.tensor([[2, 5]])
    certain = 1e4 * torch.nn.functional.one_hot(target, 7).float()
    hard, _ = masked_token_loss(scores.detach(), target, torch.ones(1, 2))
    assert float(soft_cross_entropy(scores.detach(), certain)[0].sum()) == pytest.approx(float(hard), rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "l1"])
def test_a_patch_of_pixels_costs_its_mean_error(kind: Literal["mse", "l1"], rng: torch.Generator) -> None:
    predicted, patches = torch.randn(2, 2, 3, 12, generator=rng)
    found = patch_error(predicted, patches, kind)
    for b in range(2):
        for k in range(3):
            expected = oracles.patch_error(predicted[b, k].double().numpy(), patches[b, k].double().numpy(), kind)
            assert float(found[b, k]) == pytest.approx(expected, rel=1e-5)


def test_with_equal_images_the_weights_of_each_image_add_up_to_1_and_an_image_that_hides_nothing_has_none() -> None:
    weight = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    found = weights_of_equal_images(weight)
    assert found.sum(1).tolist() == pytest.approx([1, 1, 1, 0])
    assert found[1].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


@given(pixel=st.floats(0, 1), mu=st.floats(-3, 3), log_scale=st.floats(-2, 2))
def test_logit_laplace_nll_is_minus_the_log_density(pixel: float, mu: float, log_scale: float) -> None:
    args = [torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (pixel, mu, log_scale)]
    expected = oracles.logit_laplace_nll(pixel, mu, log_scale)
    assert float(logit_laplace_nll(*args)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 0.0, 3.0])
def test_grey_level_nll_is_minus_the_log_of_what_the_density_puts_there(log_scale: float) -> None:
    """On either side of the centre, and across it; in double precision, as a difference of nearly equal numbers."""
    for level in (0, 63, 128, 255):
        x = 0.8 * level / 255 + 0.1
        for away in (-0.02, -0.001, 0.0, 0.002, 0.02):
            mu = math.log(x / (1 - x)) + away
            args = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (level / 255, mu, log_scale))
            expected = oracles.grey_level_nll(level / 255, mu, log_scale)
            assert float(grey_level_nll(*args)) == pytest.approx(expected, rel=1e-6)


def test_the_grey_levels_of_a_pixel_share_what_lies_between_their_ends() -> None:
    levels = (torch.arange(256, dtype=torch.float64) / 255).view(1, 1, 1, 256)
    mu, log_scale = torch.full_like(levels, -0.4), torch.full_like(levels, -1.0)

    def below(value: float) -> float:
        distance = (math.log(value / (1 - value)) + 0.4) / math.exp(-1.0)
        return 0.5 * math.exp(distance) if distance < 0 else 1 - 0.5 * math.exp(-distance)

    inside = below(0.9 + 0.4 / 255) - below(0.1 - 0.4 / 255)
    assert float((-grey_level_nll(levels, mu, log_scale)).exp().sum()) == pytest.approx(inside)
    assert inside < 1  # what ε leaks


def test_a_sure_grey_level_costs_nothing_where_the_density_would_pay_for_it() -> None:
    black, mu = torch.zeros(1, 1, 1, 1), torch.logit(torch.full((1, 1, 1, 1), 0.1))
    sure = torch.full((1, 1, 1, 1), -9.0)
    assert 0 <= float(grey_level_nll(black, mu, sure)) < 1e-3
    assert float(logit_laplace_nll(black, mu, sure)) - math.log(0.8 / 255) < -1
    assert torch.isfinite(grey_level_nll(black, mu + 5, sure)).all()


def test_logit_laplace_density_integrates_to_one() -> None:
    x = (np.arange(200_000) + 0.5) / 200_000
    pixel = torch.from_numpy((x - 0.1) / 0.8).reshape(1, 1, 1, -1)
    nll = logit_laplace_nll(pixel, torch.full_like(pixel, 0.4), torch.full_like(pixel, -0.7))
    assert float(torch.exp(-nll).mean()) == pytest.approx(1, abs=1e-4)


def test_logit_laplace_nll_is_finite_for_black_and_white_pixels() -> None:
    pixels = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    assert torch.isfinite(logit_laplace_nll(pixels, torch.zeros_like(pixels), torch.zeros_like(pixels))).all()


@pytest.mark.parametrize("likelihood", ["logit_laplace", "mse", "l1"])
@given(pixel=st.floats(0, 1), mu=st.floats(-3, 3), log_scale=st.floats(-2, 2))
def test_a_reconstruction_costs_what_the_equation_says(
    likelihood: Likelihood, pixel: float, mu: float, log_scale: float
) -> None:
    args = [torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (pixel, mu, log_scale)]
    expected = oracles.reconstruction_loss(likelihood, pixel, mu, log_scale)
    assert float(reconstruction_loss(likelihood, *args)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_errors_are_those_of_each_sub_pixel() -> None:
    pixels, predicted = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1), torch.tensor([0.5, 0.5, -0.5]).view(1, 3, 1, 1)
    assert squared_error(pixels, predicted).flatten().tolist() == [0.25, 0, 2.25]
    assert absolute_error(pixels, predicted).flatten().tolist() == [0.5, 0, 1.5]


def test_the_most_likely_pixels_undo_the_pixel_map() -> None:
    pixels = torch.linspace(0, 1, 11).view(1, 1, 1, -1)
    mu = torch.logit(0.8 * pixels + 0.1)
    torch.testing.assert_close(most_likely_pixels(mu), pixels, rtol=1e-5, atol=1e-6)
    assert float(logit_laplace_nll(pixels, mu, mu * 0).sum()) < float(logit_laplace_nll(pixels, mu + 0.1, mu * 0).sum())


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12))
def test_kl_to_uniform_is_the_kl_and_lies_between_0_and_ln_v(scores: list[float]) -> None:
    kl = float(kl_to_uniform(torch.tensor(scores)))
    assert kl == pytest.approx(oracles.kl_to_uniform(scores), abs=2e-5)
    assert -1e-5 <= kl <= math.log(len(scores)) + 1e-5


@pytest.mark.parametrize("vocab_size", [2, 17, 8192])
def test_kl_to_uniform_is_zero_for_equal_scores_and_ln_v_for_certainty(vocab_size: int) -> None:
    certain = torch.zeros(vocab_size)
    certain[1] = 1e4
    both = kl_to_uniform(torch.stack([torch.full((vocab_size,), 3.0), certain]))
    assert both.tolist() == pytest.approx([0, math.log(vocab_size)], abs=1e-5)


def test_kl_to_uniform_keeps_the_leading_axes(rng: torch.Generator) -> None:
    logits = torch.randn(2, 3, 4, 5, generator=rng)
    kl = kl_to_uniform(logits)
    assert kl.shape == (2, 3, 4)
    assert float(kl[1, 2, 3]) == pytest.approx(oracles.kl_to_uniform(logits[1, 2, 3].tolist()), abs=1e-6)


def test_kl_weight_of_the_paper_is_6_6_over_192() -> None:
    assert kl_weight(6.6, channels=3, stride=8) == pytest.approx(6.6 / 192)
    assert kl_weight(6.6, channels=1, stride=4) == pytest.approx(6.6 / 16)


def test_kl_weight_of_one_makes_the_mean_loss_the_bound_divided_by_the_sub_pixels() -> None:
    channels, stride, positions = 3, 4, 25
    nll, kl = 0.7, 2.1  # means a sub-pixel and a position
    sub_pixels = positions * channels * stride**2
    bound = sub_pixels * nll + positions * kl
    assert nll + kl_weight(1.0, channels, stride) * kl == pytest.approx(bound / sub_pixels)


@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 1000))
def test_marginal_entropy_is_that_of_the_mean_distribution(rows: int, vocab_size: int, seed: int) -> None:
    logits = 4 * torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed))
    value = float(marginal_entropy(logits.softmax(-1).mean(0)))
    assert value == pytest.approx(oracles.marginal_entropy(logits.double().numpy()), abs=1e-5)
    assert -1e-6 <= value <= math.log(vocab_size) + 1e-5


def test_marginal_entropy_is_ln_v_where_every_code_is_certain_once_and_zero_on_collapse() -> None:
    assert float(marginal_entropy(torch.full((8,), 1 / 8))) == pytest.approx(math.log(8), abs=1e-5)
    assert float(marginal_entropy(torch.eye(8)[0])) == pytest.approx(0, abs=1e-5)


def of_mean_posterior(logits: torch.Tensor) -> torch.Tensor:
    return marginal_entropy(logits.softmax(-1).mean(0))


@pytest.mark.parametrize("gap", [50.0, 110.0, 1000.0])
def test_gradients_stay_finite_where_probabilities_vanish(gap: float) -> None:
    """Beyond 104 nats softmax gives an exact zero in fp32; ln 0 must not reach the gradient as 0 times infinity."""
    for loss in (of_mean_posterior, kl_to_uniform):
        logits = torch.zeros(4, 5)
        logits[:, 0] = gap
        logits.requires_grad_(True)
        loss(logits).sum().backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all(), loss.__name__
