"""Colour jitter as one matrix, against Pillow's three steps."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from torch import Tensor

from smalti.core.rng import fold
from smalti.data.transforms.augment import channel_means, colour_matrix, mirrored, recolour
from smalti.data.transforms.views import NO_JITTER, ColorJitter, RandomResizedCrop, TwoViews

STEPS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def smooth(seed: int = 0, low: int = 90, high: int = 150) -> Image.Image:
    """A picture far enough from black and white that nothing is clamped."""
    small = np.random.default_rng(seed).integers(low, high, (6, 7, 3), np.uint8)
    return Image.fromarray(small).resize((40, 30), Image.Resampling.BILINEAR)


def as_batch(*pictures: Image.Image) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)


def matrix_form(images: Tensor, factors: Tensor) -> Tensor:
    return recolour(images, *colour_matrix(factors, channel_means(images)), torch.zeros(len(images)).bool())


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_it_is_pillows_result_in_any_order_where_nothing_is_clamped(order: tuple[int, ...]) -> None:
    picture, factors = smooth(), (1.3, 0.7, 1.4)
    changed = picture
    for step in order:
        changed = STEPS[step](changed).enhance(factors[step])
    surplus = matrix_form(as_batch(picture), torch.tensor([factors])) * 255 - as_batch(changed)
    assert -0.6 < float(surplus.min()) <= float(surplus.max()) < 4, "Pillow cuts the fraction off, three times"


def test_neutral_factors_change_nothing() -> None:
    images = torch.randint(256, (2, 3, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrix_form(images, torch.ones(2, 3)), images.float() / 255, rtol=0, atol=1e-6)


@given(st.lists(st.floats(0, 2), min_size=3, max_size=3))
def test_uint8_and_float_are_the_same_image(factors: list[float]) -> None:
    images = torch.randint(256, (3, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    given_factors = torch.tensor([factors] * 3)
    result = matrix_form(images, given_factors)
    torch.testing.assert_close(result, matrix_form(images.float() / 255, given_factors), rtol=0, atol=1e-5)
    assert 0 <= float(result.min()) <= float(result.max()) <= 1


def test_contrast_turns_around_the_mean_grey_of_its_own_image() -> None:
    images = as_batch(smooth(1), smooth(2, 30, 60))
    changed = matrix_form(images, torch.tensor([[1.0, 0.5, 1.0]]).expand(2, 3))
    grey = torch.tensor([0.299, 0.587, 0.114])
    before = (images.float() / 255).mean((2, 3)) @ grey
    torch.testing.assert_close(changed.mean((2, 3)) @ grey, before, rtol=0, atol=1e-4)
    alone = matrix_form(images[1:], torch.tensor([[1.0, 0.5, 1.0]]))
    assert torch.equal(alone, changed[1:]), "an image must not depend on the batch"


@pytest.mark.parametrize("beside", [1, 2, 8])
def test_colours_of_an_image_do_not_depend_on_the_images_beside_it(beside: int) -> None:
    """To the last bit: batches are divided among ranks, and images come back from a cache in other company."""
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    factors = torch.rand(64, 3, generator=torch.Generator().manual_seed(1)) + 0.5

    def coloured(part: slice) -> Tensor:
        matrix, offset = colour_matrix(factors[part], channel_means(images[part]))
        return recolour(images[part], matrix, offset, torch.zeros(len(images[part]), dtype=torch.bool))

    parts = [coloured(slice(start, start + beside)) for start in range(0, 64, beside)]
    assert torch.equal(torch.cat(parts), coloured(slice(None)))


def test_no_saturation_is_grey_and_one_channel_has_none() -> None:
    grey = matrix_form(as_batch(smooth()), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    one = torch.randint(256, (2, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrix_form(one, torch.tensor([[1.0, 1.0, 0.3]] * 2)), one.float() / 255)


def test_factors_are_drawn_evenly_from_their_range_and_by_key() -> None:
    jitter = ColorJitter(0.4, 0.2, 0.0)
    factors = jitter(fold(0, np.arange(4000)))
    assert factors.shape == (4000, 3)
    assert np.allclose(factors.min(0), [0.6, 0.8, 1], atol=0.01)
    assert np.allclose(factors.max(0), [1.4, 1.2, 1], atol=0.01)
    assert np.allclose(factors.mean(0), 1, atol=0.01)
    assert abs(np.corrcoef(factors[:, 0], factors[:, 1])[0, 1]) < 0.05
    assert np.array_equal(jitter(fold(0, np.arange(7, 9))), factors[7:9])


def test_when_colours_are_changed() -> None:
    views = [TwoViews(RandomResizedCrop(), (8, 8), None, jitter) for jitter in (NO_JITTER, ColorJitter())]
    assert [view.jitter_when for view in views] == ["never", "after_crop"]
    early = TwoViews(RandomResizedCrop(), (8, 8), None, ColorJitter(before_crop=True))
    assert early.jitter_when == "before_crop"


@pytest.mark.parametrize("side", [4, 600])
def test_only_the_chosen_images_are_mirrored(side: int) -> None:
    """Large images one by one, small ones together."""
    images = torch.randint(1, 256, (2, 3, 2, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.repeat(1, 1, side // 2, 1)
    flip = torch.tensor([False, True])
    result = mirrored(images, flip)
    factors = torch.tensor([[1.2, 0.8, 0.7]] * 2)
    change = colour_matrix(factors, channel_means(images))
    torch.testing.assert_close(recolour(images, *change, flip)[0], matrix_form(images, factors)[0])
    torch.testing.assert_close(recolour(images, *change, flip)[1], matrix_form(images, factors)[1].flip(-1))
    assert torch.equal(result[0], images[0])
    assert torch.equal(result[1], images[1].flip(-1))
    result.zero_()
    assert int(images.max()) > 0, "a copy"
