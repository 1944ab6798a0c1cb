"""The codes of a tokenizer, described."""

import pytest
import torch

from smalti.core.compute import Compute
from smalti.data.reading import even_sample
from smalti.evaluation.codebook_survey import survey
from smalti.functional.patches import patchify, varied_patches
from tests.test_contracts import GreyLevels

CPU = Compute(torch.device("cpu"), torch.float32)


def images() -> torch.Tensor:
    """Dark and bright noise, three dark patches for a bright one; one patch of each image is constant."""
    pixels = torch.randint(100, (12, 3, 8, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[::2, :, :, 4:] += 150
    pixels[:, :, 4:, :4] = 30
    return pixels


def test_codes_are_described_by_what_they_paint_and_what_they_stand_for() -> None:
    tokenizer = GreyLevels(vocab_size=3)
    found = survey(tokenizer, images(), CPU, examples=3)
    keep = varied_patches(images(), 4)
    ids = tokenizer.encode(images()).flatten(1)[keep]
    assert found.counts.tolist() == torch.bincount(ids, minlength=3).tolist()
    assert [code.number for code in found.codes] == [0, 2]
    assert sum(code.share for code in found.codes) == pytest.approx(1)
    patches = patchify(images() / 255.0, 4)[keep]
    for code in found.codes:
        assert (code.prototype - (code.number + 0.5) / 3).abs().max() < 1e-6
        own = patches[ids == code.number]
        expected = own[even_sample(len(own), 3)].view(-1, 3, 4, 4)
        assert len(expected) == 3 < len(own)
        assert torch.equal(code.examples, expected)


def test_only_the_most_frequent_are_described() -> None:
    found = survey(GreyLevels(vocab_size=3), images(), CPU, most=1)
    assert [code.number for code in found.codes] == [0]
    assert int((found.counts > 0).sum()) == 2


def test_images_without_structure_have_no_codes() -> None:
    found = survey(GreyLevels(vocab_size=3), torch.zeros(2, 3, 8, 8), CPU)
    assert found.codes == []
    assert found.counts.tolist() == [0, 0, 0]
