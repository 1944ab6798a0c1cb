"""Views of images: crop, resize, mirror and colour jitter, for a whole batch at once or, in a data worker, per image.

A batch is resampled in two matrix products. Resampling is linear and separable: out = R · image · Cᵀ, with one row
matrix R and one column matrix C per sample; the crop box, the filter (with anti-aliasing when shrinking, as in Pillow)
and the mirror are all in the matrices. Brightness, contrast and saturation are one 3 x 4 matrix per sample and a clamp:

    out = b·c·(s·x + (1 - s)·g(x)) + (1 - c)·b·m        g(x): grey value of a pixel, m: mean grey of the image

This is what Pillow's three enhancers compute, in any order, if they did not round and clamp.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from smalti.core.compute import on_device
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.decode import decode_scaled
from smalti.data.resize import resized
from smalti.data.transforms.views import Box, Crop, TwoViews

Filter: TypeAlias = Literal["bicubic", "lanczos"]

_CACHED = 1 << 18
"""Bytes of data that stay in the CPU cache from one operation to the next."""

_GREY = (0.299, 0.587, 0.114)
"""ITU-R 601 weights of R, G and B, as Pillow uses them to convert to grey."""

_TORCH_HAS = {"bicubic": True, "lanczos": hasattr(torch.ops.aten, "_upsample_lanczos2d_aa")}
_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def resample(images: Tensor, crop: Crop, size: tuple[int, int], filter: Filter = "bicubic") -> Float[Tensor, "B C h w"]:
    """Crop each image to its box, resize the crop to `size`, and mirror it where asked.

    Args:
        images: (B, C, H, W), uint8 in [0, 255] or float in [0, 1].
        crop: a box and a mirror flag for each image.
        size: height and width of the result in pixels.
        filter: bicubic (a = -0.5) for the patch view, lanczos (a = 3) for the token view, as the released code has it.

    Returns:
        (B, C, h, w), float in [0, 1].
    """
    height, width = images.shape[-2:]
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images
    box = on_device(torch.from_numpy(crop.box).float(), pixels.device)
    flip = on_device(torch.from_numpy(crop.flip), pixels.device)
    rows = _resampling_matrix(box[:, 0] * height, box[:, 2] * height, height, size[0], filter)
    columns = _resampling_matrix(box[:, 1] * width, box[:, 3] * width, width, size[1], filter)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return (rows[:, None] @ pixels @ columns[:, None].transpose(-2, -1)).clamp_(0, 1)


def _resampling_matrix(start: Tensor, length: Tensor, size_in: int, size_out: int, filter: Filter) -> Tensor:
    """Weights (B, size_out, size_in) that resample `length` pixels from `start` on, both (B,); a row sums to 1."""
    step = (length / size_out)[:, None, None]
    centre = start[:, None, None] + (torch.arange(size_out, device=start.device)[:, None] + 0.5) * step
    distance = (torch.arange(size_in, device=start.device) + 0.5 - centre) / step.clamp_min(1.0)
    weight = _bicubic(distance) if filter == "bicubic" else _lanczos(distance)
    return weight / weight.sum(-1, keepdim=True)


def _bicubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: Tensor, a: float = 3.0) -> Tensor:
    return torch.where(x.abs() < a, torch.sinc(x) * torch.sinc(x / a), 0.0)


def colour_matrix(
    factors: Float[Tensor, "B 3"], mean: Float[Tensor, "B C"]
) -> tuple[Float[Tensor, "B C C"], Float[Tensor, "B C 1"]]:
    """Matrix and offset that change the colours of images with values in [0, 1].

    Only RGB has a grey value; of other channels each is its own, so saturation changes nothing, and contrast is that of
    each channel.

    Args:
        factors: factors of brightness, contrast and saturation, in this order; 1 changes nothing.
        mean: mean of each channel in [0, 1]; contrast scales the distance from its grey value.
    """
    channels = mean.shape[1]
    brightness, contrast, saturation = factors[:, :, None, None].unbind(1)
    if channels not in (1, 3):
        matrix = (brightness * contrast) * torch.eye(channels, device=mean.device)
        return matrix, (((1 - contrast) * brightness)[..., 0] * mean)[..., None]
    grey = on_device(torch.tensor(_GREY if channels == 3 else (1.0,)), mean.device)
    mixed = saturation * torch.eye(channels, device=mean.device) + (1 - saturation) * grey.expand(channels, channels)
    # Not mean @ grey: a matrix product may round an image's result differently depending on the rest of the batch.
    level = ((1 - contrast) * brightness)[..., 0] * (mean * grey).sum(1, keepdim=True)
    return brightness * contrast * mixed, level.expand(-1, channels)[..., None]


def channel_means(images: Tensor) -> Float[Tensor, "B C"]:
    """Mean in [0, 1] of each channel of images (B, C, H, W), uint8 or float in [0, 1]."""
    means = torch.cat([images[part].float().mean((2, 3)) for part in _parts(images)])
    return means / 255 if images.dtype == torch.uint8 else means


def recolour(
    images: Tensor,
    matrix: Float[Tensor, "B C C"],
    offset: Float[Tensor, "B C 1"],
    flip: Bool[Tensor, "B"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Apply matrix and offset of `colour_matrix` to images (B, C, H, W), clamp to [0, 1], mirror those in `flip`."""
    scaled = matrix / 255 if images.dtype == torch.uint8 else matrix
    result = torch.empty(images.shape, device=images.device)
    for part in _parts(images):
        some = images[part] if flip is None else _mirrored(images[part], flip[part])
        flat = some.flatten(2).float()
        torch.baddbmm(offset[part], scaled[part], flat, out=result[part].flatten(2)).clamp_(0, 1)
    return result


def mirrored(images: Tensor, flip: Bool[Tensor, "B"]) -> Tensor:
    """A copy of the images (B, C, H, W), any dtype, with those mirrored where `flip` is true."""
    result = torch.empty_like(images)
    for part in _parts(images):
        result[part] = _mirrored(images[part], flip[part])
    return result


def _mirrored(images: Tensor, flip: Bool[Tensor, "B"]) -> Tensor:
    if len(images) == 1:
        return images.flip(-1) if flip else images
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def _parts(images: Tensor) -> list[slice]:
    """Slices of the batch: on a CPU each has as many images as fit in its cache; elsewhere one slice has all."""
    an_image = 4 * images[0].numel()
    step = max(1, _CACHED // an_image) if images.device.type == "cpu" else len(images)
    return [slice(start, start + step) for start in range(0, len(images), step)]


@dataclass(frozen=True)
class Render:
    """Reads, decodes, crops and resizes an image of `source`. Mirror and jitter are applied later, to the whole batch.

    Jitter with `before_crop` is the exception: it is applied here. Without `views.full_decode` a JPEG of which the crop
    has more than twice the pixels of the view, on both sides, is decoded at a fraction of its size. The view then
    differs by 3 grey levels on average (docs/paper-map.md).
    """

    source: ImageDataset
    views: TwoViews

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        sizes = [self.views.size] if self.views.token_size is None else [self.views.size, self.views.token_size]
        return tuple((self.source.channels, *size) for size in sizes)

    def __len__(self) -> int:
        return len(self.source)

    def name(self, position: int) -> str:
        return self.source.name(position)

    def __call__(self, position: int, key: int, out: Sequence[NDArray[np.uint8]]) -> None:
        views, box = self.views, (0.0, 0.0, 1.0, 1.0)

        def least(height: int, width: int) -> float:
            nonlocal box
            box = views.crop.one(key, height, width, views.size)
            enough = 2 * max(views.size[0] / (box[2] * height), views.size[1] / (box[3] * width))
            return 1.0 if views.full_decode else enough

        data = self.source.read(position)
        source = self.source
        pixels = decode_scaled(data, source.name(position), source.channels, least, source.window)
        if views.jitter_when == "before_crop":
            pixels = _jittered(pixels, views.jitter(np.array([key], np.uint64)))
        part = _cut(pixels, box)
        _resize(part, out[0], "bicubic")
        if len(out) > 1:
            _resize(part, out[1], "lanczos")


def _cut(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """The box of pixels (H, W, C), rounded to whole pixels, at least 1 x 1."""
    height, width = pixels.shape[:2]
    tall, wide = max(round(box[2] * height), 1), max(round(box[3] * width), 1)
    top, left = min(round(box[0] * height), height - tall), min(round(box[1] * width), width - wide)
    return pixels[top : top + tall, left : left + wide]


def _resize(pixels: NDArray[np.uint8], out: NDArray[np.uint8], filter: Filter) -> None:
    """Resize pixels (H, W, C) to the size of `out` (C, h, w), with anti-aliasing."""
    if _TORCH_HAS[filter]:  # eight times as fast as Pillow, and at most two grey levels away
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        torch.from_numpy(out).copy_(F.interpolate(image, out.shape[1:], mode=filter, antialias=True)[0])
    else:
        size = (out.shape[1], out.shape[2])
        out[:] = resized(pixels, size, _PILLOW[filter]).transpose(2, 0, 1)


def _jittered(pixels: NDArray[np.uint8], factors: NDArray[np.float64]) -> NDArray[np.uint8]:
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    change = colour_matrix(torch.from_numpy(factors).float(), channel_means(image))
    changed = recolour(image, *change)
    return np.ascontiguousarray(changed[0].mul_(255).round_().byte().permute(1, 2, 0).numpy())
