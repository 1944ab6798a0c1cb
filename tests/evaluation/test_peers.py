"""The same figures from scikit-learn, where it is installed."""

from typing import Any

import numpy as np
import pytest
import torch

from smalti.evaluation.label_draws import student_quantile
from smalti.evaluation.probe import fit_linear, knn_accuracy, scale_of

linear_model: Any = pytest.importorskip("sklearn.linear_model")
neighbors: Any = pytest.importorskip("sklearn.neighbors")

NUM, CLASSES, WIDTH = 400, 5, 12


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clouds, as features of a layer have them, on axes of different scales."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(NUM) % CLASSES
    clouds = torch.randn(NUM, WIDTH, generator=rng) + 1.5 * torch.eye(CLASSES, WIDTH)[labels]
    return clouds * torch.logspace(-1, 1, WIDTH) + 3, labels


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_the_linear_probe_is_that_of_scikit_learn(l2: float) -> None:
    (x, y), (test, test_y) = problem(0), problem(1)
    ours = fit_linear(x, y, l2, max_iter=1000)
    mean, std = scale_of(x)
    peer = linear_model.LogisticRegression(C=1 / (l2 * NUM), tol=1e-8, max_iter=5000)
    peer.fit(((x - mean) / std).double().numpy(), y.numpy())
    # Adding the same to all scores changes nothing but the bias, which is not regularised.
    bias = ours.bias - ours.bias.mean()
    np.testing.assert_allclose(ours.weight.t().numpy(), peer.coef_, rtol=0, atol=2e-3)
    np.testing.assert_allclose(bias.numpy(), peer.intercept_ - peer.intercept_.mean(), rtol=0, atol=2e-3)
    accuracy = peer.score(((test - mean) / std).double().numpy(), test_y.numpy())
    assert ours.accuracy(test, test_y) == pytest.approx(accuracy, abs=1 / NUM)
    assert 0.4 < accuracy < 0.95


@pytest.mark.parametrize("k", [1, 20])
def test_k_nn_is_that_of_scikit_learn(k: int) -> None:
    (x, y), (test, test_y) = problem(0), problem(1)
    mean, std = x.mean(0), x.std(0)
    bank, queries = ((part - mean).div(std).double().numpy() for part in (x, test))
    peer = neighbors.KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    accuracy = peer.fit(bank, y.numpy()).score(queries, test_y.numpy())
    assert knn_accuracy(x, y, test, test_y, k) == pytest.approx(accuracy, abs=1e-9)
    assert 0.4 < accuracy < 0.95


@pytest.mark.parametrize("freedom", [1, 2, 5, 9, 100])
def test_quantiles_are_those_of_scipy(freedom: int) -> None:
    stats: Any = pytest.importorskip("scipy.stats")
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)
