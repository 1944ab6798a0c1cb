"""Crops: inside the image, of the asked sizes and shapes, the same alone and in a batch."""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from smalti.core.errors import UsageError
from smalti.core.rng import Stream, fold, uniform
from smalti.data.transforms.views import RandomResizedCrop, SquareCrop, WholeImage

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


def torchvision_fallback(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels, as torchvision's RandomResizedCrop has them after ten attempts."""
    if width / height < min(ratio):
        tall, wide = round(width / min(ratio)), width
    elif width / height > max(ratio):
        tall, wide = height, round(height * max(ratio))
    else:
        tall, wide = height, width
    return (height - tall) // 2, (width - wide) // 2, tall, wide


@given(height=st.integers(20, 600), width=st.integers(20, 600), low=st.floats(0.2, 1), high=st.floats(1, 5))
def test_the_central_fallback_is_torchvisions(height: int, width: int, low: float, high: float) -> None:
    view = RandomResizedCrop(ratio=(low, high), fallback="centre")
    box = np.array(view._otherwise(height, width)) * [height, width, height, width]
    assert np.abs(box - torchvision_fallback(height, width, (low, high))).max() <= 1.0  # it rounds to whole pixels


@pytest.mark.parametrize(("width", "share"), [(256, 0.12), (512, 0.59)])
def test_where_no_crop_fits_the_centre_is_shown_and_all_other_crops_stay(width: int, share: float) -> None:
    """At 4:1 that is 12 % of all crops, at 8:1 it is 59 %; the whole image would be squeezed into a square."""
    whole, centre = (RandomResizedCrop(fallback=kind)(KEYS, 64, width).box for kind in ("whole", "centre"))
    failed = (whole == [0, 0, 1, 1]).all(axis=1)
    assert failed.mean() == pytest.approx(share, abs=0.03)
    assert np.array_equal(whole[~failed], centre[~failed])
    top, left, tall, wide = torchvision_fallback(64, width, (3 / 4, 4 / 3))
    assert np.abs(centre[failed] * [64, width, 64, width] - [top, left, tall, wide]).max() <= 1
    aspect = centre[:, 3] * width / (centre[:, 2] * 64)
    assert aspect.max() <= 4 / 3 + 1e-9


def test_in_a_square_both_fallbacks_are_the_whole_image() -> None:
    assert RandomResizedCrop(fallback="centre")._otherwise(50, 50) == (0, 0, 1, 1)


def dalle_crop(draws: NDArray[np.float64], height: int, width: int, size: int) -> list[float]:
    """DALL-E's preprocessing, one line each: largest square, scaled to a random side, crop of the size of the view."""
    shorter = min(height, width)
    t_min, t_max = min(shorter, round(9 / 8 * size)), min(shorter, round(12 / 8 * size))
    t = t_min + math.floor(draws[0] * (t_max + 1 - t_min))
    top, left = (height - shorter) * draws[1], (width - shorter) * draws[1]
    inside = min(size, t)
    top, left = top + (t - inside) * draws[2] * shorter / t, left + (t - inside) * draws[3] * shorter / t
    side = inside * shorter / t
    return [top / height, left / width, side / height, side / width]


@given(height=st.integers(20, 900), width=st.integers(20, 900), size=st.sampled_from([64, 112, 256]))
def test_the_square_crop_is_that_of_dalle(height: int, width: int, size: int) -> None:
    keys = KEYS[:20]
    crop = SquareCrop()(keys, height, width, (size, size))
    draws = uniform(fold(keys, Stream.CROP), 4)
    for key, box, drawn, flip in zip(keys.tolist(), crop.box, draws, crop.flip, strict=True):
        assert box.tolist() == pytest.approx(dalle_crop(drawn, height, width, size), abs=1e-12)
        assert np.array_equal(SquareCrop().one(key, height, width, (size, size)), box)
        assert SquareCrop().flips(np.array([key], np.uint64))[0] == flip
    assert (crop.box >= 0).all()
    assert (crop.box[:, :2] + crop.box[:, 2:] <= 1 + 1e-12).all()
    assert crop.box[:, 2] * height == pytest.approx(crop.box[:, 3] * width)


def test_a_square_crop_has_two_thirds_to_eight_ninths_of_the_shorter_side_and_enlarges_nothing() -> None:
    large = SquareCrop()(KEYS, 2000, 3000, (256, 256)).box[:, 2]
    assert (large.min(), large.max()) == pytest.approx((2 / 3, 8 / 9), abs=2e-3)
    assert (256 / (large * 256)).mean() == pytest.approx((9 / 8 + 12 / 8) / 2, abs=0.01)  # its inverse is uniform
    assert (SquareCrop()(KEYS, 300, 400, (256, 256)).box[:, 2] * 300 >= 256 - 1e-9).all()
    assert (SquareCrop()(KEYS, 100, 200, (256, 256)).box[:, 2] == 1).all()


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
def test_impossible_ranges_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RandomResizedCrop(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scaled": (0.9, 1.5)}, "a crop scaled by"),
        ({"scaled": (1.5, 1.2)}, "a crop scaled by"),
        ({"flip": -0.5}, "a flip probability of -0.5; use 0 to 1"),
    ],
)
def test_impossible_square_crops_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SquareCrop(**fields)


@given(height=sides, width=sides, seed=st.integers(0, 1000))
def test_one_box_is_the_same_as_in_a_batch(height: int, width: int, seed: int) -> None:
    keys = fold(seed, np.arange(5))
    for view in (
        RandomResizedCrop(),
        RandomResizedCrop(scale=(0.9, 1.0), ratio=(2.0, 3.0)),
        RandomResizedCrop(scale=(0.9, 1.0), ratio=(2.0, 3.0), fallback="centre"),
        WholeImage(),
    ):
        crop = view(keys, height, width)
        for key, box in zip(keys.tolist(), crop.box, strict=True):
            assert np.allclose(view.one(key, height, width), box, rtol=1e-12, atol=1e-12)
        assert np.array_equal(view.flips(keys), crop.flip)
