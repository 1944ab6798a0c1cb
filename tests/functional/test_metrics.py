"""Metrics against the equations."""

import math
from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from smalti.functional.metrics import codebook_use, codes_seen, correct, entropy, psnr, ssim
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


def test_correct_is_whether_the_highest_score_is_the_target() -> None:
    logits = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]])
    assert correct(logits, torch.tensor([[1, 2]])).tolist() == [[True, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_scores_the_first_counts(rng: torch.Generator, dtype: torch.dtype) -> None:
    logits = torch.randint(3, (50, 700), generator=rng).to(dtype)
    first = torch.tensor([row.index(max(row)) for row in logits.tolist()])
    assert correct(logits, first).all()
    assert not correct(logits, first + 1).any()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_codes_seen_are_the_different_ones_of_those_that_could_be(ids: list[int]) -> None:
    seen, possible = codes_seen(torch.tensor(ids), vocab_size=10)
    assert (int(seen), int(possible)) == (len(set(ids)), min(10, len(ids)))
