"""Averaged weights."""

import pytest
import torch
from torch import nn

from smalti.training.optim import EMA


def test_the_average_follows_the_equation() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average, expected = EMA(layer, decay=0.5), 0.0
    for step in range(1, 6):
        nn.init.constant_(layer.weight, float(step))
        average.update(layer, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert float(average.module.state_dict()["weight"]) == pytest.approx(expected, rel=1e-6)


def test_the_average_of_a_constant_is_the_constant() -> None:
    layer = nn.Linear(3, 2)
    average = EMA(layer, decay=0.9)
    for step in range(1, 5):
        average.update(layer, step)
    torch.testing.assert_close(average.module.weight, layer.weight, check_stride=False)


def test_buffers_are_copied_not_averaged() -> None:
    norm = nn.BatchNorm1d(2)
    average = EMA(norm, decay=0.9)
    norm(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    average.update(norm, 1)
    assert norm.running_mean is not None
    assert torch.equal(average.module.running_mean, norm.running_mean)  # type: ignore[arg-type]
    assert average.module.num_batches_tracked == 1
    assert average.module.running_mean is not norm.running_mean


def test_the_average_is_a_copy_that_is_not_trained() -> None:
    layer = nn.Linear(2, 2)
    average = EMA(layer, decay=0.9)
    with torch.no_grad():
        layer.weight.add_(1)
    assert not torch.equal(average.module.state_dict()["weight"], layer.weight)
    assert not any(p.requires_grad for p in average.module.parameters())
    assert all(p.requires_grad for p in layer.parameters())
