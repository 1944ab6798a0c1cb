"""Crop, scale and mirror in two matrix products, against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.core.rng import fold
from smalti.data.transforms.augment import Filter, resample
from smalti.data.transforms.views import Crop, RandomResizedCrop, WholeImage

PILLOW = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def by_pillow(image: np.ndarray, box: np.ndarray, flip: bool, size: tuple[int, int], filter: Filter) -> np.ndarray:
    """The same on a float image of one channel."""
    height, width = image.shape
    top, left, tall, wide = box * [height, width, height, width]
    picture = Image.fromarray(image.astype(np.float32))
    pixels = (left, top, min(left + wide, width), min(top + tall, height))
    out = np.asarray(picture.resize((size[1], size[0]), PILLOW[filter], box=pixels)).clip(0, 1)
    return out[:, ::-1] if flip else out


@pytest.mark.parametrize("filter", ["bicubic", "lanczos"])
@pytest.mark.parametrize("size_in", [(28, 28), (40, 23), (64, 90)])
@pytest.mark.parametrize("size_out", [(32, 32), (14, 9), (70, 31)])
def test_random_crops_equal_pillow_enlarged_or_shrunk(
    filter: Filter, size_in: tuple[int, int], size_out: tuple[int, int], rng: torch.Generator
) -> None:
    images = torch.rand(6, 2, *size_in, generator=rng)
    crop = RandomResizedCrop()(fold(1, np.arange(6)), *size_in)
    result = resample(images, crop, size_out, filter)
    assert result.shape == (6, 2, *size_out)
    for i in range(6):
        for c in range(2):
            expected = by_pillow(images[i, c].numpy(), crop.box[i], bool(crop.flip[i]), size_out, filter)
            assert np.abs(result[i, c].numpy() - expected).max() < 2e-5


@pytest.mark.parametrize("filter", ["bicubic", "lanczos"])
def test_corners_and_edges_equal_pillow(filter: Filter, rng: torch.Generator) -> None:
    images = torch.rand(4, 1, 20, 20, generator=rng)
    box = np.array([[0, 0, 0.3, 0.3], [0.7, 0.7, 0.3, 0.3], [0, 0.5, 1, 0.5], [0.95, 0, 0.05, 1]])
    crop = Crop(box, np.array([False, True, False, True]))
    result = resample(images, crop, (12, 12), filter)
    for i in range(4):
        expected = by_pillow(images[i, 0].numpy(), box[i], bool(crop.flip[i]), (12, 12), filter)
        assert np.abs(result[i, 0].numpy() - expected).max() < 2e-5


def test_the_whole_image_at_its_own_size_is_unchanged() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    result = resample(images, WholeImage()(fold(np.arange(1)), 16, 16), (16, 16))
    torch.testing.assert_close(result, images / 255, rtol=0, atol=1e-6)


def test_a_mirrored_image_is_the_image_mirrored(rng: torch.Generator) -> None:
    images = torch.rand(1, 3, 9, 12, generator=rng)
    box = np.array([[0.1, 0.2, 0.5, 0.6]])
    plain, mirrored = (resample(images, Crop(box, np.array([flip])), (8, 8)) for flip in (False, True))
    torch.testing.assert_close(mirrored, plain.flip(-1))


@pytest.mark.parametrize("filter", ["bicubic", "lanczos"])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_constant_image_stays_constant(filter: Filter, value: int) -> None:
    images = torch.full((8, 1, 30, 20), value, dtype=torch.uint8)
    result = resample(images, RandomResizedCrop()(fold(np.arange(8)), 30, 20), (16, 16), filter)
    torch.testing.assert_close(result, torch.full_like(result, value / 255), rtol=0, atol=2e-6)


def test_results_stay_in_the_unit_range_at_hard_edges() -> None:
    images = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    images[..., 8:] = 255
    result = resample(images, WholeImage()(fold(np.arange(1)), 16, 16), (40, 40), "lanczos")
    assert float(result.min()) == 0
    assert float(result.max()) == 1


def test_uint8_and_float_images_give_the_same(rng: torch.Generator) -> None:
    images = torch.randint(256, (3, 1, 10, 10), generator=rng, dtype=torch.uint8)
    crop = RandomResizedCrop()(fold(np.arange(3)), 10, 10)
    torch.testing.assert_close(resample(images, crop, (8, 8)), resample(images.float() / 255, crop, (8, 8)))


def test_one_by_one_equals_batched(rng: torch.Generator) -> None:
    images = torch.rand(5, 3, 17, 13, generator=rng)
    crop = RandomResizedCrop()(fold(np.arange(5)), 17, 13)
    batch = resample(images, crop, (8, 8))
    for i in range(5):
        alone = resample(images[i : i + 1], Crop(crop.box[i : i + 1], crop.flip[i : i + 1]), (8, 8))
        torch.testing.assert_close(alone[0], batch[i])


def test_the_input_is_left_alone(rng: torch.Generator) -> None:
    images = torch.rand(1, 1, 8, 8, generator=rng)
    before = images.clone()
    resample(images, WholeImage()(fold(np.arange(1)), 8, 8), (8, 8))
    assert torch.equal(images, before)
