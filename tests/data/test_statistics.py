"""Mean and standard deviation of pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from smalti.core.errors import UsageError
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import Data
from smalti.data.reading import measure_statistics, statistics
from tests.small_runs import flat_pictures


def test_measured_statistics_are_numpys() -> None:
    images = torch.randint(256, (600, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 3
    mean, std = measure_statistics(images)
    pixels = images.numpy() / 255
    assert np.allclose(mean, pixels.mean((0, 2, 3)), atol=6e-5)
    assert np.allclose(std, pixels.std((0, 2, 3)), atol=6e-5)


def test_a_picture_of_one_colour_has_a_deviation_to_divide_by() -> None:
    assert measure_statistics(torch.full((2, 1, 3, 3), 255, dtype=torch.uint8)) == ((1.0,), (0.001,))


def test_conventions() -> None:
    images = InMemoryDataset(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    assert statistics("half", images, 3, 2) == ((0.5,) * 3, (0.5,) * 3)
    assert statistics("imagenet", images, 3, 2) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(UsageError, match="ImageNet's statistics for 1 channel; use --normalisation auto or half"):
        statistics("imagenet", images, 1, 2)


def test_streamed_images_are_measured_as_squares(tmp_path: Path) -> None:
    folder = flat_pictures(tmp_path / "photos", 9)
    streamed = Data(str(folder), side=16, memory="stream").open(Log()).train
    resident = Data(str(folder), side=16).load(Log()).train
    assert statistics("auto", streamed, 3, 16) == statistics("auto", resident, 3, 16)
