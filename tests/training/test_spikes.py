"""A line about a loss that jumps, and none about one that does not."""

import numpy as np
import pytest

from smalti.training.trainer import SpikeDetector


def fed(losses: list[float]) -> list[str]:
    spikes = SpikeDetector()
    return [line for step, loss in enumerate(losses) if (line := spikes.check(step, loss))]


def test_a_loss_far_above_the_others_is_worth_a_line() -> None:
    assert fed([2.0, 2.2] * 20 + [20.5, 2.1]) == [
        "warning: the loss jumps to 20.5 at step 40; the median of the last 40 logged is 2.1;"
        " should it not come back, lower --optimiser.lr"
    ]


@pytest.mark.parametrize("start", [0.0, 5.0, -3.0], ids=["at 0", "above", "below 0, as densities may be"])
def test_noise_and_a_falling_loss_are_not(start: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 2000)
    assert fed((start + noise).tolist()) == []
    assert fed((start + noise + np.linspace(4, 0, 2000)).tolist()) == []


def test_the_first_losses_are_no_measure() -> None:
    assert fed([1.0] * 19 + [50.0]) == []
    assert len(fed([1.0] * 20 + [50.0])) == 1


def test_losses_that_hardly_vary_may_rise_by_a_tenth() -> None:
    assert fed([1.0] * 30 + [1.1]) == []
    assert len(fed([1.0] * 30 + [1.11])) == 1


def test_only_the_last_hundred_count() -> None:
    """After a rise for good there is no end of warnings, but not for ever."""
    losses = [1.0] * 100 + [9.0] * 200
    lines = fed(losses)
    assert 0 < len(lines) <= 51
