"""What a tokenizer keeps."""

import math

import pytest
import torch
from torch import Tensor

from smalti.core.compute import Compute
from smalti.evaluation.reconstruction import describe_tokenizer, evaluate_tokenizer
from smalti.evaluation.token_sample import NearestPatch, fit_kmeans_baseline
from smalti.tokenizers.dvae import DVAE
from tests.test_contracts import GreyLevels

CPU = Compute(torch.device("cpu"), torch.float32)


def images() -> Tensor:
    """Six images of four patches; the last patch of each is constant."""
    pixels = torch.randint(256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[:, :, 4:, 4:] = 128
    return pixels


def test_measurements_equal_those_of_one_pass() -> None:
    tokenizer = GreyLevels(vocab_size=16)
    result = evaluate_tokenizer(tokenizer, images(), CPU, batch_size=4)
    ids = tokenizer.encode(images())
    unit = images().float() / 255
    mse = (tokenizer.decode(ids) - unit).square().mean((1, 2, 3))
    assert result.psnr_db == pytest.approx(float((-10 * mse.log10()).mean()), rel=1e-5)
    assert result.constant_share == 0.25
    assert result.codebook.tokens == 18
    printed = describe_tokenizer(result.as_dict()).splitlines()[0]
    assert printed == "on 18 held-out tokens whose patch is not constant; 25.0% of all patches are constant"
    counts = torch.bincount(ids.flatten(1)[:, :3].flatten(), minlength=16)
    assert result.codebook.used == pytest.approx(float((counts > 0).double().mean()))
    shares = torch.bincount(ids.flatten()) / 24
    shares = shares[shares > 0].double()
    assert result.unigram_entropy == pytest.approx(float(-(shares * shares.log()).sum()), rel=1e-5)


def test_float_images_are_measured_like_uint8_ones() -> None:
    tokenizer = GreyLevels()
    from_floats = evaluate_tokenizer(tokenizer, images().float() / 255, CPU)
    assert evaluate_tokenizer(tokenizer, images(), CPU) == from_floats


def test_images_without_any_structure_have_no_codebook_use() -> None:
    result = evaluate_tokenizer(GreyLevels(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), CPU)
    assert result.codebook.tokens == 0
    assert result.constant_share == 1.0
    assert result.unigram_entropy == 0.0


def ramp() -> Tensor:
    """Patches of every mean grey, as many of each of 16 levels, none constant."""
    levels = torch.arange(16).repeat(8)[:, None, None, None] * 16 + 8
    checks = torch.tensor([[-3, 3], [3, -3]]).repeat(2, 2)
    return (levels + checks).expand(-1, 3, -1, -1).to(torch.uint8)


class Collapsed(GreyLevels):
    """One code for everything."""

    def encode(self, images: Tensor) -> Tensor:
        return torch.zeros_like(super().encode(images))


def fitted(vocab_size: int) -> NearestPatch:
    found = fit_kmeans_baseline(ramp(), vocab_size, 4)
    assert found is not None
    return found


def test_a_perfect_codebook_is_used_whole_and_evenly() -> None:
    use = evaluate_tokenizer(GreyLevels(vocab_size=16), ramp(), CPU).codebook
    assert use.used == 1
    assert use.perplexity == pytest.approx(16)
    assert use.entropy == pytest.approx(math.log(16))
    assert use.top_share == 1 / 16


def test_a_collapsed_codebook_has_a_perplexity_of_one_beside_that_of_kmeans() -> None:
    found = evaluate_tokenizer(Collapsed(vocab_size=16), ramp(), CPU, train=ramp()).as_dict()
    assert (found["perplexity"], found["top_share"], found["codebook_usage"]) == (1, 1, 1 / 16)
    baseline = evaluate_tokenizer(fitted(16), ramp(), CPU).as_dict()
    assert found["kmeans_perplexity"] == baseline["perplexity"]
    assert found["kmeans_codebook_usage"] == baseline["codebook_usage"]
    assert baseline["perplexity"] is not None
    assert baseline["perplexity"] > 12
    assert found["codebook_entropy_nats"] == 0


def test_the_window_is_the_same_whatever_is_measured_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.evaluation.reconstruction.sample_index", lambda images, stride: torch.arange(5))
    assert evaluate_tokenizer(GreyLevels(), ramp(), CPU).as_dict()["window_tokens"] == 5


def test_numbers_that_a_tokenizer_does_not_have_are_none() -> None:
    found = evaluate_tokenizer(GreyLevels(), images(), CPU).as_dict()
    lacking = {name for name, value in found.items() if value is None}
    assert lacking == {
        *("hard_soft_gap_db", "elbo_nats", "distortion_nats", "bits_per_dim"),
        *("bits_per_dim_unigram", "grey_level_bits_per_dim"),
        *("kmeans_codebook_usage", "kmeans_perplexity", "kmeans_codebook_entropy_nats"),
        "kmeans_top_share",
        *("class_bits", "class_bits_by_chance", "kmeans_class_bits", "kmeans_class_bits_by_chance"),
        *(f"kmeans_{of}_bits{more}" for of in ("position", "colour") for more in ("", "_by_chance")),
    }


def test_a_discrete_vae_has_all_numbers_and_without_a_density_no_bound() -> None:
    tokenizer = DVAE(vocab_size=8, stride=4, width=4, depth=1).build().requires_grad_(False)
    shown = images()
    found = evaluate_tokenizer(tokenizer, shown, CPU, train=shown, labels=torch.arange(len(shown)) % 2)
    assert None not in found.as_dict().values()
    assert found.bound is not None
    assert found.bound.unigram_rate_nats == pytest.approx(4 * found.unigram_entropy)
    without = evaluate_tokenizer(tokenizer, images(), CPU, density=False)
    assert without.bound is None
    assert without.soft_psnr_db == found.soft_psnr_db
