"""Metrics against the equations."""

import math
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from smalti.functional.metrics import (
    average_precision,
    codebook_use,
    codes_seen,
    entropy,
    psnr,
    ssim,
    topk_correct,
    unigram_nats,
)
from tests import oracles


def test_psnr_of_each_image(rng: torch.Generator) -> None:
    images, others = torch.rand(2, 3, 2, 4, 5, generator=rng)
    expected = [oracles.psnr(a.double().numpy(), b.double().numpy()) for a, b in zip(images, others, strict=True)]
    assert psnr(images, others).tolist() == pytest.approx(expected, rel=1e-5)


def test_psnr_of_equal_images_is_100_db() -> None:
    image = torch.full((1, 1, 2, 2), 0.3)
    assert psnr(image, image).tolist() == [100]


@pytest.mark.parametrize("size", [(13, 16), (11, 11), (8, 20)])
def test_ssim_of_each_image(size: tuple[int, int], rng: torch.Generator) -> None:
    images = torch.rand(2, 3, *size, generator=rng)
    others = (images + 0.3 * torch.rand(2, 3, *size, generator=rng)).clamp(0, 1)
    expected = [oracles.ssim(a.double().numpy(), b.double().numpy()) for a, b in zip(images, others, strict=True)]
    assert ssim(images, others).tolist() == pytest.approx(expected, abs=1e-5)


def test_ssim_is_one_where_images_are_equal_and_symmetric_where_they_are_not(rng: torch.Generator) -> None:
    images, others = torch.rand(2, 2, 1, 12, 12, generator=rng)
    assert ssim(images, images).tolist() == pytest.approx([1, 1])
    assert ssim(images, others).tolist() == pytest.approx(ssim(others, images).tolist())
    assert ssim(images, 1 - images).max() < 0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any))
def test_entropy_of_counts(counts: list[int]) -> None:
    nats = float(entropy(torch.tensor(counts)))
    assert nats == pytest.approx(oracles.entropy(counts), abs=1e-9)
    assert -1e-9 <= nats <= math.log(len(counts)) + 1e-9


def test_entropy_takes_float_counts() -> None:
    assert float(entropy(torch.tensor([0.5, 0.5, 0.0]))) == pytest.approx(math.log(2))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_codebook_use_counts(ids: list[int]) -> None:
    use = codebook_use(torch.tensor([ids]), vocab_size=10)
    counts = Counter(ids)
    assert use.used == pytest.approx(len(counts) / 10)
    assert use.entropy == pytest.approx(oracles.entropy(list(counts.values())), abs=1e-9)
    assert use.perplexity == pytest.approx(math.exp(use.entropy))
    assert use.top_share == pytest.approx(max(counts.values()) / len(ids))
    assert use.tokens == len(ids)


def test_codebook_use_counts_only_what_is_kept() -> None:
    ids = torch.tensor([[0, 0, 1], [2, 0, 3]])
    keep = torch.tensor([[False, False, True], [True, False, True]])
    assert codebook_use(ids, 4, keep) == codebook_use(torch.tensor([[1, 2, 3]]), 4)


def test_codebook_use_of_nothing_is_a_collapse() -> None:
    use = codebook_use(torch.zeros(1, 3, dtype=torch.int64), 4, torch.zeros(1, 3, dtype=torch.bool))
    assert use == (0.0, 1.0, 0.0, 1.0, 0)


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=8, unique=True), st.data())
def test_a_hit_is_at_the_place_of_the_target_in_the_order_of_scores(scores: list[float], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(scores) - 1))
    place = oracles.rank(scores, target)
    expected = [number == place for number in range(min(3, len(scores)))]
    found = topk_correct(torch.tensor([scores], dtype=torch.float64), torch.tensor([target]), 3)
    assert found.tolist() == [expected]


def test_with_few_classes_every_target_is_hit_once() -> None:
    logits = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]])
    assert topk_correct(logits, torch.tensor([[1, 2]]), 5).tolist() == [[[True, False, False], [False, False, True]]]
    assert topk_correct(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), 5).sum(1).tolist() == [1] * 4, (
        "also where scores are equal"
    )


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_codes_seen_are_the_different_ones_of_those_that_could_be(ids: list[int]) -> None:
    seen, possible = codes_seen(torch.tensor(ids), vocab_size=10)
    assert (int(seen), int(possible)) == (len(set(ids)), min(10, len(ids)))


@given(st.lists(st.integers(0, 30), min_size=2, max_size=12))
def test_prices_of_tokens_are_those_of_a_distribution_and_suit_the_counted_ones(counts: list[int]) -> None:
    prices = unigram_nats(torch.tensor(counts))
    assert prices.tolist() == pytest.approx(oracles.unigram_nats(counts))
    assert float((-prices).exp().sum()) == pytest.approx(1)
    if sum(counts):
        mean = sum(n * price for n, price in zip(counts, prices.tolist(), strict=True)) / sum(counts)
        assert oracles.entropy(counts) - 1e-9 <= mean <= math.log(len(counts)) + 1e-9


@given(scores=st.lists(st.integers(0, 5), min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_average_precision_is_its_definition_also_with_ties(scores: list[int], seed: int) -> None:
    relevant = np.random.default_rng(seed).random(len(scores)) < 0.5
    relevant[0] = True
    found = float(average_precision(torch.tensor(scores).float(), torch.from_numpy(relevant)))
    assert found == pytest.approx(oracles.average_precision(scores, relevant.tolist()))


def test_the_entropy_of_one_token_is_not_minus_zero() -> None:
    assert f"{float(entropy(torch.tensor([0, 7, 0]))):.3f}" == "0.000"
