"""The linear probe is the minimum of its objective."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
import torch

from smalti.evaluation.probe import LinearProbe, fit_linear, fit_ridge, scale_of
from tests import oracles

Fit: TypeAlias = Callable[..., LinearProbe]


def data(num: int = 120, features: int = 5, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features on different scales that say something, but not all, about the class."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % classes
    x = torch.randn(num, features, generator=rng) + 1.5 * torch.eye(classes, features)[labels]
    return x * torch.logspace(-1, 1, features) + 3, labels


@pytest.mark.parametrize("l2", [1e-3, 1e-2, 1.0])
def test_the_gradient_of_the_objective_vanishes_at_the_solution(l2: float) -> None:
    x, labels = data()
    probe = fit_linear(x, labels, l2)
    standardised = ((x - probe.mean) / probe.std).double().numpy()
    weight, bias = probe.weight.double().numpy(), probe.bias.double().numpy()
    d_weight, d_bias = oracles.regression_gradient(standardised, labels.numpy(), weight, bias, l2)
    assert np.abs(d_weight).max() < 2e-4
    assert np.abs(d_bias).max() < 2e-4


def test_features_that_depend_on_each_other_are_fitted_to_the_end_too() -> None:
    """As features of a network do: the curvature of plain logistic regression has a condition of 10^5 here."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(500) % 4
    x = (torch.randn(500, 20, generator=rng) + torch.eye(4, 20)[labels]) @ torch.randn(20, 20, generator=rng)
    x = x + 20 * torch.randn(500, 1, generator=rng)
    probe = fit_linear(x, labels, 1e-4)
    standardised = ((x - probe.mean) / probe.std).double().numpy()
    weight, bias = probe.weight.double().numpy(), probe.bias.double().numpy()
    d_weight, _ = oracles.regression_gradient(standardised, labels.numpy(), weight, bias, 1e-4)
    assert np.abs(d_weight).max() < 2e-4


def test_features_are_standardised_by_the_images_it_is_fitted_on() -> None:
    x, labels = data()
    probe = fit_linear(x, labels, 1e-2)
    torch.testing.assert_close(probe.mean, x.mean(0))
    torch.testing.assert_close(probe.std, x.std(0), rtol=0.01, atol=0)


def test_accuracy_is_that_of_the_scores() -> None:
    (x, labels), (test, test_labels) = data(), data(60, seed=1)
    probe = fit_linear(x, labels, 1e-3)
    scores = (test - probe.mean) / probe.std @ probe.weight + probe.bias
    expected = float((scores.argmax(1) == test_labels).double().mean())
    assert probe.accuracy(test, test_labels) == pytest.approx(expected)
    assert 0.6 < expected < 1


def test_separable_data_are_separated() -> None:
    labels = torch.arange(60) % 3
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) + 30 * torch.eye(3, 4)[labels]
    assert fit_linear(x, labels, 1e-4).accuracy(x, labels) == 1.0


def test_shuffled_labels_give_chance() -> None:
    rng = torch.Generator().manual_seed(0)
    x, labels = torch.randn(2, 600, 5, generator=rng), torch.randint(4, (2, 600), generator=rng)
    accuracy = fit_linear(x[0], labels[0], 1e-3).accuracy(x[1], labels[1])
    assert accuracy == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 600))


def test_more_regularisation_means_smaller_weights_but_leaves_the_bias_free() -> None:
    x, labels = data()
    labels = torch.where(torch.arange(120) < 90, 0, labels)
    norms = [float(fit_linear(x, labels, l2).weight.norm()) for l2 in (1e-3, 1e-1, 10.0)]
    assert norms == sorted(norms, reverse=True)
    strong = fit_linear(x, labels, 1000.0)
    shares = torch.softmax(strong.bias, 0)
    assert shares.tolist() == pytest.approx((torch.bincount(labels) / 120).tolist(), abs=0.01)


def test_a_constant_feature_has_no_part() -> None:
    x, labels = data()
    constant = torch.cat([x, torch.full((120, 1), 2.0)], 1)
    probe = fit_linear(constant, labels, 1e-3)
    assert torch.isfinite(probe.weight).all()
    assert probe.accuracy(constant, labels) == fit_linear(x, labels, 1e-3).accuracy(x, labels)


def test_fitting_works_without_gradients_switched_on_outside() -> None:
    """The evaluations of a network run under no_grad; the probe itself needs gradients."""
    x, labels = data()
    with torch.no_grad():
        inside = fit_linear(x, labels, 1e-2)
    assert torch.equal(inside.weight, fit_linear(x, labels, 1e-2).weight)


@pytest.mark.parametrize("l2", [1e-3, 0.1, 1.0])
def test_the_gradient_of_the_ridge_objective_vanishes_at_its_solution(l2: float) -> None:
    """Of mean squared error / 2 + l2/2 ‖W‖², with one-hot targets."""
    x, labels = data()
    probe = fit_ridge(x, labels, l2)
    standardised = ((x - probe.mean) / probe.std).double().numpy()
    weight, bias = probe.weight.double().numpy(), probe.bias.double().numpy()
    d_weight, d_bias = l2 * weight, np.zeros(3)
    for row, label in zip(standardised, labels.tolist(), strict=True):
        error = row @ weight + bias - np.eye(3)[label]
        d_weight, d_bias = d_weight + np.outer(row, error) / 120, d_bias + error / 120
    assert np.abs(d_weight).max() < 1e-5
    assert np.abs(d_bias).max() < 1e-5


def test_the_quick_classifier_separates_separable_data() -> None:
    labels = torch.arange(60) % 3
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) + 30 * torch.eye(3, 4)[labels]
    assert fit_ridge(x, labels, 0.1).accuracy(x, labels) == 1.0


@pytest.mark.parametrize("num", [8, 12])
def test_the_quick_classifier_of_few_images_solves_the_same_equations(num: int) -> None:
    """Fewer images than features are solved by another system; repeating each row changes nothing but that."""
    x = torch.randn(num, 50, generator=torch.Generator().manual_seed(0))
    labels, scale = torch.arange(num) % 3, scale_of(x)
    small, large = fit_ridge(x, labels, 0.1), fit_ridge(x.repeat(8, 1), labels.repeat(8), 0.1, scale=scale)
    torch.testing.assert_close(small.weight, large.weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(small.bias, large.bias)


@pytest.mark.parametrize("fit", [fit_linear, fit_ridge])
def test_the_unit_of_features_can_be_given(fit: Fit) -> None:
    x, labels = data()
    mean, std = scale_of(x)
    given, own = (
        fit(x[:30], labels[:30], 1e-2, scale=(mean, std)),
        fit((x[:30] - mean) / std, labels[:30], 1e-2, scale=(torch.zeros(5), torch.ones(5))),
    )
    torch.testing.assert_close(given.weight, own.weight)
    assert not torch.allclose(given.weight, fit(x[:30], labels[:30], 1e-2).weight, rtol=1e-2)


def test_the_quick_classifier_takes_fewer_images_than_features() -> None:
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    assert fit_ridge(x, torch.tensor([0, 1, 0, 1]), 0.1).accuracy(x, torch.tensor([0, 1, 0, 1])) == 1.0


@pytest.mark.parametrize("start", [False, True])
def test_with_fewer_images_than_features_it_is_the_minimum_in_all_directions(start: bool) -> None:
    x, labels = data(num=30, features=80)
    first = fit_linear(x, labels, 1e-1) if start else None
    probe = fit_linear(x, labels, 1e-2, start=first)
    standardised = ((x - probe.mean) / probe.std).double().numpy()
    weight, bias = probe.weight.double().numpy(), probe.bias.double().numpy()
    d_weight, d_bias = oracles.regression_gradient(standardised, labels.numpy(), weight, bias, 1e-2)
    assert probe.weight.shape == (80, 3)
    assert max(np.abs(d_weight).max(), np.abs(d_bias).max()) < 2e-4
