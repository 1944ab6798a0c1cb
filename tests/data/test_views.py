"""Crops: inside the image, of the asked sizes and shapes, the same alone and in a batch."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from smalti.core.errors import UsageError
from smalti.core.rng import fold
from smalti.data.transforms.views import RandomResizedCrop, WholeImage

KEYS = fold(5, np.arange(2000))
sides = st.integers(1, 300)


@given(height=sides, width=sides, low=st.floats(0.01, 1), high=st.floats(0.01, 1), seed=st.integers(0, 1000))
def test_boxes_lie_inside_the_image(height: int, width: int, low: float, high: float, seed: int) -> None:
    view = RandomResizedCrop(scale=(min(low, high), max(low, high)))
    top, left, tall, wide = view(fold(seed, np.arange(50)), height, width).box.T
    assert (tall > 0).all()
    assert (wide > 0).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= 1 + 1e-12).all()
    assert (left + wide <= 1 + 1e-12).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 60), (60, 100)])
def test_areas_and_aspects_are_drawn_from_their_ranges(height: int, width: int) -> None:
    box = RandomResizedCrop(scale=(0.2, 0.9), ratio=(0.5, 1.5))(KEYS, height, width).box
    box = box[(box != [0, 0, 1, 1]).any(axis=1)]
    area, aspect = box[:, 2] * box[:, 3], box[:, 3] * width / (box[:, 2] * height)
    assert len(box) > 1900
    assert area.min() == pytest.approx(0.2, abs=0.02)
    assert area.min() >= 0.2 - 1e-9
    assert area.max() <= 0.9 + 1e-9
    assert 0.5 - 1e-9 <= aspect.min() < 0.53
    assert 1.3 < aspect.max() <= 1.5 + 1e-9


def test_areas_are_uniform_and_aspects_log_uniform_where_every_crop_fits() -> None:
    box = RandomResizedCrop(scale=(0.1, 0.5), ratio=(0.5, 2.0))(KEYS, 50, 50).box
    area, aspect = box[:, 2] * box[:, 3], box[:, 3] / box[:, 2]
    assert area.mean() == pytest.approx(0.3, abs=0.01)
    assert area.std() == pytest.approx(0.4 / np.sqrt(12), abs=0.01)
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.03)


def test_places_are_uniform() -> None:
    top, left, tall, wide = RandomResizedCrop()(KEYS, 64, 64).box.T
    free = (tall < 0.99) & (wide < 0.99)
    for share in ((top / (1 - tall))[free], (left / (1 - wide))[free]):
        assert share.mean() == pytest.approx(0.5, abs=0.03)
        assert share.std() == pytest.approx(np.sqrt(1 / 12), abs=0.02)


def test_a_crop_that_never_fits_shows_the_whole_image() -> None:
    box = RandomResizedCrop(scale=(0.9, 1.0))(KEYS[:20], 10, 1000).box
    assert box.tolist() == [[0, 0, 1, 1]] * 20


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_mirrored_images_is_as_asked(probability: float) -> None:
    flips = RandomResizedCrop(flip=probability)(KEYS, 32, 32).flip
    assert flips.dtype == np.bool_
    assert flips.mean() == pytest.approx(probability, abs=0 if probability in (0, 1) else 0.045)


def test_mirroring_does_not_depend_on_the_box() -> None:
    crop = RandomResizedCrop()(KEYS, 32, 32)
    assert abs(np.corrcoef(crop.flip, crop.box[:, 2] * crop.box[:, 3])[0, 1]) < 0.09
    assert abs(np.corrcoef(crop.flip, crop.box[:, 1])[0, 1]) < 0.09


def test_one_by_one_equals_batched() -> None:
    view = RandomResizedCrop()
    batch = view(KEYS[:20], 40, 30)
    for i in range(20):
        alone = view(KEYS[i : i + 1], 40, 30)
        assert np.array_equal(alone.box[0], batch.box[i])
        assert alone.flip[0] == batch.flip[i]


def test_the_whole_image_is_never_mirrored() -> None:
    crop = WholeImage()(KEYS[:3], 10, 20)
    assert crop.box.tolist() == [[0, 0, 1, 1]] * 3
    assert crop.flip.tolist() == [False] * 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": (0.0, 1.0)}, "a crop scale of"),
        ({"scale": (0.5, 0.2)}, "a crop scale of"),
        ({"scale": (0.5, 1.2)}, "a crop scale of"),
        ({"ratio": (0.0, 1.0)}, "a crop ratio of"),
        ({"ratio": (2.0, 1.0)}, "a crop ratio of"),
        ({"flip": 1.5}, "a flip probability of 1.5; use 0 to 1"),
    ],
)
def test_impossible_ranges_are_refused(fields: dict[str, tuple[float, float]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RandomResizedCrop(**fields)


@given(height=sides, width=sides, seed=st.integers(0, 1000))
def test_one_box_is_the_same_as_in_a_batch(height: int, width: int, seed: int) -> None:
    keys = fold(seed, np.arange(5))
    for view in (RandomResizedCrop(), RandomResizedCrop(scale=(0.9, 1.0), ratio=(2.0, 3.0)), WholeImage()):
        crop = view(keys, height, width)
        for key, box in zip(keys.tolist(), crop.box, strict=True):
            assert np.allclose(view.one(key, height, width), box, rtol=1e-12, atol=1e-12)
        assert np.array_equal(view.flips(keys), crop.flip)
