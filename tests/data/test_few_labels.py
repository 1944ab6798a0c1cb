"""Few labels are drawn evenly over the classes, the same for the same seed, and never from what is put aside."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.data.splits import few_labels, hold_out

LABELS = np.arange(1000) % 10


@given(num=st.integers(2, 300), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**40))
def test_what_is_put_aside_is_a_share_and_not_learned_from(num: int, share: float, seed: int) -> None:
    learn, aside = hold_out(num, share, seed)
    assert sorted([*learn, *aside]) == list(range(num))
    assert len(aside) == min(max(1, round(share * num)), num - 1)


@pytest.mark.parametrize(("share", "each"), [(0.01, 1), (0.1, 10), (0.254, 25), (0.001, 1)])
def test_every_class_has_its_share(share: float, each: int) -> None:
    learn, _ = hold_out(1000, 0.1, seed=3)
    chosen = few_labels(LABELS, learn, share, None, seed=3)
    assert np.bincount(LABELS[chosen]).tolist() == [each] * 10
    assert set(chosen) <= set(learn)
    assert len(set(chosen)) == len(chosen)


def test_all_labels_are_all_that_is_not_put_aside() -> None:
    learn, _ = hold_out(1000, 0.1, seed=3)
    assert np.array_equal(few_labels(LABELS, learn, 1.0, None, seed=3), learn)


def test_a_number_of_each_class_is_at_most_what_there_is() -> None:
    labels = np.array([0] * 50 + [1] * 3)
    chosen = few_labels(labels, np.arange(53), 1.0, 5, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [5, 3]


def test_shares_follow_the_size_of_a_class() -> None:
    labels = np.array([0] * 80 + [1] * 20 + [2])
    chosen = few_labels(labels, np.arange(101), 0.1, None, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [8, 2, 1]


def test_fewer_labels_are_a_part_of_more_and_another_seed_draws_others() -> None:
    learn = np.arange(1000)
    few, more = (few_labels(LABELS, learn, share, None, seed=1) for share in (0.02, 0.1))
    assert set(few) < set(more)
    assert set(few) != set(few_labels(LABELS, learn, 0.02, None, seed=2))
