"""Each operation of RandAugment gives the levels that Pillow gives, image by image."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from smalti.data.transforms import randaugment as operations

Picture: TypeAlias = Image.Image
FILL = (124, 116, 104)


def levels(channels: int = 3) -> Tensor:
    """Noise of different range, a gradient and a single level."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(low, high, (channels, 13, 17)) for low, high in ((0, 256), (90, 140), (30, 31))]
    gradient = np.broadcast_to(np.linspace(20, 230, 17).astype(int), (channels, 13, 17))
    return torch.from_numpy(np.stack([*noise, gradient])).float()


def picture(image: Tensor) -> Picture:
    pixels = image.byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def pixels(picture: Picture) -> NDArray[np.float64]:
    array = np.asarray(picture).astype(np.float64)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def enhanced(kind: Callable[[Picture], ImageEnhance._Enhance]) -> Callable[[Picture, float], Picture]:
    return lambda picture, amount: kind(picture).enhance(amount)


def solarize_add(picture: Picture, amount: float) -> Picture:
    table = [min(255, i + int(amount)) if i < 128 else i for i in range(256)]
    return picture.point(table * len(picture.getbands()))


EXACT: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Picture, float], Picture], list[float]]] = {
    "autocontrast": (operations.autocontrast, lambda p, _: ImageOps.autocontrast(p), [0.0]),
    "equalize": (operations.equalize, lambda p, _: ImageOps.equalize(p), [0.0]),
    "invert": (operations.invert, lambda p, _: ImageOps.invert(p), [0.0]),
    "posterize": (operations.posterize, lambda p, bits: ImageOps.posterize(p, int(bits)), [1, 2, 4, 8]),
    "solarize": (operations.solarize, lambda p, threshold: ImageOps.solarize(p, int(threshold)), [0, 26, 128, 256]),
    "solarize_add": (operations.solarize_add, solarize_add, [0, 11, 99]),
    "brightness": (operations.brightness, enhanced(ImageEnhance.Brightness), [0.1, 0.5, 1.0, 1.75]),
    "contrast": (operations.contrast, enhanced(ImageEnhance.Contrast), [0.1, 0.5, 1.0, 1.75]),
    "color": (operations.color, enhanced(ImageEnhance.Color), [0.1, 0.5, 1.0, 1.75]),
    "sharpness": (operations.sharpness, enhanced(ImageEnhance.Sharpness), [0.1, 0.5, 1.0, 1.75]),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", EXACT)
def test_colours_are_those_of_pillow(name: str, channels: int) -> None:
    change, pillow, amounts = EXACT[name]
    images = levels(channels)
    for amount in amounts:
        found = change(images, torch.full((4,), float(amount)))
        expected = np.stack([pixels(pillow(picture(image), amount)) for image in images])
        np.testing.assert_array_equal(found.numpy(), expected, err_msg=f"amount {amount}")


def affine(matrix: Callable[[float, Picture], tuple[float, ...]]) -> Callable[[Picture, float], Picture]:
    def turned(picture: Picture, amount: float) -> Picture:
        how = Image.Transform.AFFINE
        return picture.transform(picture.size, how, matrix(amount, picture), Image.Resampling.BILINEAR, fillcolor=FILL)

    return turned


GEOMETRY: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Picture, float], Picture], list[float]]] = {
    "rotate": (
        operations.rotate,
        lambda p, degrees: p.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=FILL),
        [0.0, 13.0, -27.0, 90.0],
    ),
    "shear_x": (operations.shear_x, affine(lambda a, _: (1, a, 0, 0, 1, 0)), [0.27, -0.1]),
    "shear_y": (operations.shear_y, affine(lambda a, _: (1, 0, 0, a, 1, 0)), [0.27, -0.1]),
    "translate_x": (operations.translate_x, affine(lambda a, p: (1, 0, a * p.width, 0, 1, 0)), [0.4, -0.21]),
    "translate_y": (operations.translate_y, affine(lambda a, p: (1, 0, 0, 0, 1, a * p.height)), [0.4, -0.21]),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_is_that_of_pillow_to_a_level(name: str) -> None:
    change, pillow, amounts = GEOMETRY[name]
    images = levels()
    for amount in amounts:
        found = change(images, torch.full((4,), float(amount)))
        expected = np.stack([pixels(pillow(picture(image), amount)) for image in images])
        far = np.abs(found.numpy() - expected) > 1
        assert far.mean() < 0.002, f"amount {amount}: a pixel on the edge may be in or out"


def test_grey_images_are_filled_with_grey() -> None:
    filled = operations.translate_x(levels(1), torch.full((4,), 1.0))
    assert set(filled.unique().tolist()) == {float(np.asarray(Image.new("RGB", (1, 1), FILL).convert("L"))[0, 0])}


@pytest.mark.parametrize("name", [*EXACT, *GEOMETRY])
def test_every_image_has_its_own_amount(name: str) -> None:
    change, _, amounts = (EXACT | GEOMETRY)[name]
    images, each = levels(), torch.tensor([float(amounts[i % len(amounts)]) for i in range(4)])
    together = change(images, each)
    for i in range(4):
        assert torch.equal(together[i : i + 1], change(images[i : i + 1], each[i : i + 1]))
