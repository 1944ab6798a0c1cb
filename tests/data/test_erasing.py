"""Random erasing puts rectangles of noise into images, where the keys say so."""

from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.contracts import Batch
from smalti.core.errors import UsageError
from smalti.core.rng import fold, signed
from smalti.data.transforms.batch_transforms import Erasing

KEYS = fold(5, np.arange(4000))


def test_rectangles_fit_and_have_the_areas_and_shapes_that_are_asked_for() -> None:
    boxes = Erasing(1.0).boxes(KEYS, 32, 48)
    top, left, height, width = boxes.T
    assert (height > 0).mean() > 0.999
    assert ((top >= 0) & (left >= 0) & (top + height <= 32) & (left + width <= 48)).all()
    area = height * width / (32 * 48)
    assert area[area > 0].min() > 0.015
    assert area.max() < 0.35
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert np.exp(np.log(height / width).mean()) == pytest.approx(1, abs=0.1)
    assert {0, 32} <= {*top, *(top + height)}, "both borders are reached"


def test_so_many_images_are_erased() -> None:
    boxes = Erasing(0.25).boxes(KEYS, 32, 32)
    erased = boxes[:, 2] > 0
    assert erased.mean() == pytest.approx(0.25, abs=0.02)
    assert np.array_equal(boxes[erased], Erasing(1.0).boxes(KEYS[erased], 32, 32))
    area = boxes[erased, 2] * boxes[erased, 3] / 32**2
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02), "which are erased says nothing of the areas"


def test_a_ratio_is_that_of_height_to_width() -> None:
    boxes = Erasing(1.0, area=(0.05, 0.2), ratio=(2.0, 3.0)).boxes(KEYS, 64, 64)
    assert np.exp(np.log(boxes[:, 2] / boxes[:, 3]).mean()) == pytest.approx(6**0.5, abs=0.05)


def test_what_is_erased_is_noise_and_the_rest_stays() -> None:
    keys = fold(np.arange(40))
    images = torch.full((40, 3, 24, 20), 128, dtype=torch.uint8)
    batch = Batch(images, torch.arange(40), torch.from_numpy(signed(keys)))
    erasing = Erasing(0.5)
    found, boxes = erasing(batch).image, erasing.boxes(keys, 24, 20)
    assert torch.equal(found, erasing(batch).image)
    noise = []
    for image, (top, left, height, width) in zip(found, boxes, strict=True):
        rest = torch.ones(24, 20, dtype=torch.bool)
        rest[top : top + height, left : left + width] = False
        assert (image[:, rest] == 128 / 255).all()
        noise.append(image[:, ~rest].flatten())
    drawn = torch.cat(noise)
    assert len(drawn.unique()) > 0.9 * len(drawn), "each pixel and channel is drawn for itself"
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(drawn.var()) == pytest.approx(1 / 12, abs=0.01)


def test_without_a_rectangle_the_batch_stays_as_it_is() -> None:
    batch = Batch(torch.zeros(2, 3, 8, 8), torch.arange(2), torch.arange(2))
    assert Erasing()(batch) is batch


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probability": 2.0}, r"a probability of erasing of 2.0; use 0 to 1"),
        ({"area": (0.0, 0.5)}, r"an erased area of \(0.0, 0.5\); use 0 < low <= high < 1"),
        ({"ratio": (2.0, 1.0)}, r"an erased ratio of \(2.0, 1.0\); use 0 < low <= high"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Erasing(**fields)
