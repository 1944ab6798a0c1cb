"""Keys, draws and permutations."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from smalti.core.rng import Stream, fold, fold_one, permutation, quarters, signed, uniform, uniform_one
from tests import oracles


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4))
def test_fold_equals_the_hash_in_python_integers(counters: list[int]) -> None:
    assert int(fold(*counters)) == oracles.splitmix64(*counters)


@given(st.integers(-(2**63), -1))
def test_fold_takes_negative_counters(counter: int) -> None:
    assert int(fold(counter)) == oracles.splitmix64(counter)


def test_one_by_one_equals_bulk() -> None:
    epoch, index = np.arange(3)[:, None], np.arange(50)
    bulk = fold(7, epoch, index, Stream.CROP)
    assert bulk.shape == (3, 50)
    assert all(bulk[e, i] == fold(7, e, i, Stream.CROP) for e in range(3) for i in range(50))
    draws = uniform(bulk, 4)
    assert draws.shape == (3, 50, 4)
    assert np.array_equal(draws[1, 20:21], uniform(bulk[1, 20:21], 4))


def test_the_order_of_the_counters_matters() -> None:
    assert fold(1, 2) != fold(2, 1)
    assert fold(1) != fold(1, 0)


def test_keys_of_different_counters_differ() -> None:
    keys = fold(np.arange(3)[:, None, None], np.arange(100)[:, None], np.arange(100))
    assert len(np.unique(keys)) == keys.size


def test_streams_are_distinct_and_give_distinct_keys() -> None:
    assert len({int(stream) for stream in Stream}) == len(Stream)
    assert len({int(fold(0, 1, 2, stream)) for stream in Stream}) == len(Stream)


def test_uniform_lies_in_0_to_1_and_more_draws_begin_with_the_fewer() -> None:
    draws = uniform(fold(np.arange(1000)), 20)
    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.array_equal(draws[:, :5], uniform(fold(np.arange(1000)), 5))


@pytest.mark.parametrize("shape", [(50_000, 1), (1, 50_000)])
def test_uniform_is_uniform_along_keys_and_along_draws(shape: tuple[int, int]) -> None:
    """Kolmogorov-Smirnov at the 1 % level."""
    draws = np.sort(uniform(fold(3, np.arange(shape[0])), shape[1]).ravel())
    distance = np.abs(draws - (np.arange(len(draws)) + 0.5) / len(draws)).max()
    assert distance < 1.63 / math.sqrt(len(draws))


@pytest.mark.parametrize("axis", [0, 1])
def test_neighbouring_draws_are_not_correlated(axis: int) -> None:
    draws = uniform(fold(np.arange(300)), 300)
    first, second = (draws[:-1], draws[1:]) if axis == 0 else (draws[:, :-1], draws[:, 1:])
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert abs(correlation) < 4 / math.sqrt(first.size)


@given(st.integers(0, 2**63 - 1))
def test_quarters_are_the_four_parts_of_the_key(counter: int) -> None:
    key = oracles.splitmix64(counter)
    expected = [(key // 2**shift % 2**16) / 2**16 for shift in (48, 32, 16, 0)]
    assert quarters(fold(counter)).tolist() == expected
    assert quarters(fold(np.array([[counter]])))[:, 0, 0].tolist() == expected


def test_quarters_are_uniform_and_independent() -> None:
    draws = quarters(fold(5, np.arange(100_000)))
    assert draws.shape == (4, 100_000)
    assert draws.min() >= 0
    assert draws.max() < 1
    for first in range(4):
        bins = np.bincount((draws[first] * 64).astype(int), minlength=64)
        assert ((bins - 1562.5) ** 2 / 1562.5).sum() < 103.5  # chi-square of 63 degrees, 0.1 %
        for second in range(first):
            assert abs(np.corrcoef(draws[first], draws[second])[0, 1]) < 4 / math.sqrt(100_000)


def test_neighbouring_counters_share_no_bits() -> None:
    """Each of the 64 bits of a key is set half of the time, and changes half of the time from one key to the next."""
    keys = fold(0, np.arange(20_000))
    bits = (keys[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(20_000)
    assert np.abs((bits[1:] != bits[:-1]).mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(20_000)


@pytest.mark.parametrize("bit", [0, 1, 20, 63])
def test_one_other_bit_of_a_counter_changes_half_of_the_key(bit: int) -> None:
    counters = np.arange(5000, dtype=np.uint64)
    changed = np.bitwise_count(fold(counters) ^ fold(counters ^ np.uint64(1 << bit)))
    assert abs(changed.mean() - 32) < 0.5
    assert changed.min() >= 8


def test_fold_leaves_its_counters_as_they_were() -> None:
    counters = fold(np.arange(5))
    before = counters.copy()
    fold(counters, 1)
    fold(1, counters)
    uniform(counters, 2)
    assert np.array_equal(counters, before)


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.integers(0, 200))
def test_permutation_holds_every_index_once(seed: int, epoch: int, length: int) -> None:
    assert sorted(permutation(seed, epoch, length)) == list(range(length))


def test_permutations_of_other_seeds_and_epochs_differ() -> None:
    orders = [tuple(permutation(seed, epoch, 50)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25
    assert permutation(0, 0, 50).tolist() == permutation(0, 0, 50).tolist()


def test_permutations_put_every_image_everywhere() -> None:
    first = np.bincount([permutation(0, epoch, 10)[0] for epoch in range(2000)], minlength=10)
    assert first.min() > 200 - 4 * math.sqrt(200)
    assert first.max() < 200 + 4 * math.sqrt(200)


def test_signed_keeps_the_bits() -> None:
    keys = fold(np.arange(100))
    assert signed(keys).dtype == np.int64
    assert (signed(keys) < 0).any()
    assert np.array_equal(signed(keys).astype(np.uint64), keys)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
def test_one_key_without_arrays_is_the_same_key(counters: list[int]) -> None:
    assert fold_one(*counters) == int(fold(*(np.array(counter, np.uint64) for counter in counters)))


@given(st.integers(0, 2**64 - 1), st.integers(0, 100))
def test_one_draw_without_arrays_is_the_same_draw(key: int, counter: int) -> None:
    assert uniform_one(key, counter) == uniform(np.array([key], np.uint64), counter + 1)[0, counter]
