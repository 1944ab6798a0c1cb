"""What a tokenizer keeps."""

import pytest
import torch
from torch import Tensor

from smalti.core.compute import Compute
from smalti.evaluation.reconstruction import evaluate_tokenizer
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
