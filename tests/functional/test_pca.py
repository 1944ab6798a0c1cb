"""Principal components are those of singular vectors, and have one sign."""

import numpy as np
import pytest
import torch

from smalti.functional.pca import pca
from tests import oracles


@pytest.mark.parametrize("shape", [(40, 6), (5, 12)])
def test_scores_and_shares_are_those_of_singular_vectors(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1) + 7
    found = pca(torch.from_numpy(rows).float(), 3)
    scores, shares = oracles.principal_components(rows.astype(np.float32).astype(np.float64), 3)
    np.testing.assert_allclose(found.scores.numpy(), scores, atol=1e-4)
    np.testing.assert_allclose(found.shares.numpy(), shares, rtol=1e-5)


def test_signs_are_those_of_the_features_and_not_of_chance() -> None:
    rows = torch.from_numpy(np.random.default_rng(1).normal(size=(30, 4))).float()
    first = pca(rows, 3)
    torch.testing.assert_close(pca(rows, 3).scores, first.scores, rtol=0, atol=0)
    order = torch.arange(29, -1, -1)
    torch.testing.assert_close(pca(rows[order], 3).scores, first.scores[order])
    torch.testing.assert_close(pca(rows + 5, 3).scores, first.scores, atol=1e-5, rtol=0)


def test_rows_without_variance_have_scores_of_zero() -> None:
    same = pca(torch.full((6, 4), 0.3), 3)
    assert same.scores.abs().max() == 0
    assert same.shares.tolist() == [0, 0, 0]
    line = pca(torch.arange(6.0)[:, None] * torch.tensor([[1.0, -2.0, 0.0]]), 3)
    assert line.scores[:, 1:].abs().max() == 0
    assert line.scores[:, 0].tolist() == sorted(line.scores[:, 0].tolist(), reverse=True), "-2 is the largest loading"
