"""The guess that copies, against plain loops."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from smalti.core.rng import fold
from smalti.functional.masking import Blockwise, mask_index
from smalti.functional.metrics import copy_baseline, entropy, nearest_visible
from tests import oracles

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


def counted(pairs: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """How often each token is the neighbour's, and how often it is not."""
    hits, misses = torch.zeros(5), torch.zeros(5)
    for token, neighbour in pairs:
        (hits if token == neighbour else misses)[token] += 1
    return hits, misses


@pytest.mark.parametrize("grid", [(14, 14), (3, 8), (1, 16), (2, 1)])
def test_the_nearest_visible_patch_is_the_first_of_the_fewest_steps(grid: tuple[int, int]) -> None:
    masking = Blockwise(0.5)
    masks = masking(fold(3, np.arange(5)), grid)
    index, _ = mask_index(masks, masking.count(grid))
    found = nearest_visible(torch.from_numpy(masks), torch.from_numpy(index), grid)
    for mask, places, neighbours in zip(masks, index, found.tolist(), strict=True):
        assert neighbours == [oracles.nearest_visible(mask, int(place), grid[1]) for place in places]


def test_a_visible_patch_is_its_own_nearest() -> None:
    mask = torch.tensor([[True, False, False]])
    assert nearest_visible(mask, torch.tensor([[0, 1, 2]]), (1, 3)).tolist() == [[1, 1, 2]]


@given(PAIRS)
def test_copying_costs_what_the_mixture_says_and_no_other_weight_is_better(pairs: list[tuple[int, int]]) -> None:
    found = copy_baseline(*counted(pairs))
    tokens, neighbours = [token for token, _ in pairs], [neighbour for _, neighbour in pairs]
    assert found.nats == pytest.approx(oracles.copying_nats(tokens, neighbours, min(found.weight, 1 - 1e-12)), abs=1e-6)
    others = [oracles.copying_nats(tokens, neighbours, weight) for weight in np.linspace(0, 0.999, 200)]
    assert found.nats <= min(others) + 1e-9
    assert found.accuracy == pytest.approx(np.mean([a == b for a, b in pairs]))


@given(PAIRS)
def test_copying_never_costs_more_than_the_unigram_entropy(pairs: list[tuple[int, int]]) -> None:
    hits, misses = counted(pairs)
    assert -1e-9 <= copy_baseline(hits, misses).nats <= float(entropy(hits + misses)) + 1e-9


def test_copying_that_is_always_right_costs_nothing_and_that_never_is_costs_the_unigram_entropy() -> None:
    counts, none = torch.tensor([3.0, 5.0, 0.0]), torch.zeros(3)
    assert copy_baseline(counts, none) == pytest.approx((0, 1, 1), abs=1e-9)
    assert copy_baseline(none, counts) == pytest.approx((float(entropy(counts)), 0, 0))
