"""Metrics against the equations."""

import math
from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from smalti.functional.metrics import codebook_use, correct, entropy, psnr
from tests import oracles


def test_psnr_of_each_image(rng: torch.Generator) -> None:
    images, others = torch.rand(2, 3, 2, 4, 5, generator=rng)
    expected = [oracles.psnr(a.double().numpy(), b.double().numpy()) for a, b in zip(images, others, strict=True)]
    assert psnr(images, others).tolist() == pytest.approx(expected, rel=1e-5)


def test_psnr_of_equal_images_is_100_db() -> None:
    image = torch.full((1, 1, 2, 2), 0.3)
    assert psnr(image, image).tolist() == [100]


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


def test_correct_is_whether_the_highest_score_is_the_target() -> None:
    logits = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]])
    assert correct(logits, torch.tensor([[1, 2]])).tolist() == [[True, False]]
