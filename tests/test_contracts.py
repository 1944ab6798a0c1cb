"""The contract suites themselves: they pass what is right and catch what is wrong."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.core.contracts import Batch, Grid
from smalti.core.rng import Keys
from smalti.functional.masking import Random
from tests.contracts import check_masking, check_tokenizer

IMAGES = torch.randint(256, (3, 3, 8, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@dataclass
class GreyLevels:
    """The simplest tokenizer: the mean grey of a patch, in `vocab_size` steps."""

    vocab_size: int = 8
    stride: int = 4
    fault: str = ""

    def encode(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255 if images.dtype == torch.uint8 and self.fault != "scale" else images.float()
        grey = torch.nn.functional.avg_pool2d(pixels.mean(1), self.stride)
        if self.fault == "batch":
            grey = grey - grey.mean() + 0.5
        top = self.vocab_size if self.fault == "range" else self.vocab_size - 1
        ids = (grey * self.vocab_size).long().clamp(0, top)
        return ids + (self.vocab_size if self.fault == "range" else 0)

    def decode(self, ids: Tensor) -> Tensor:
        levels = (ids + (0.5 if self.fault != "outside" else 1.5)) / self.vocab_size
        large = levels.repeat_interleave(self.stride, 1).repeat_interleave(self.stride, 2)
        return large[:, None].expand(-1, 3, -1, -1)


def test_a_right_tokenizer_passes() -> None:
    check_tokenizer(GreyLevels(), IMAGES)


@pytest.mark.parametrize("fault", ["scale", "batch", "range", "outside"])
def test_a_wrong_tokenizer_is_caught(fault: str) -> None:
    images = IMAGES.clone()
    images[1] = 0
    with pytest.raises(AssertionError):
        check_tokenizer(GreyLevels(fault=fault), images)


def test_the_parts_of_a_batch_are_the_batch() -> None:
    batch = Batch(image=torch.rand(6, 1, 2, 2), index=torch.arange(6), key=torch.arange(6) + 7, ids=torch.ones(6, 4))
    parts = batch.split(3)
    assert [part.index.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert all(part.mask is None for part in parts)
    for name in ("image", "index", "key", "ids"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert parts[0].image.data_ptr() == batch.image.data_ptr(), "a view: the pixels are not copied"


@dataclass(frozen=True)
class Wrong:
    """A masking that hides nothing, everything, or depends on its place in the batch."""

    fault: str
    constant: ClassVar[bool] = False

    def count(self, grid: Grid) -> int:
        return Random().count(grid)

    def __call__(self, keys: Keys, grid: Grid) -> np.ndarray:
        if self.fault == "place":
            return Random()(np.add(keys, np.arange(len(keys), dtype=np.uint64)), grid)
        return np.full((len(keys), grid[0] * grid[1]), self.fault == "everything")


@pytest.mark.parametrize("fault", ["nothing", "everything", "place"])
def test_a_wrong_masking_is_caught(fault: str) -> None:
    with pytest.raises(AssertionError):
        check_masking(Wrong(fault))
