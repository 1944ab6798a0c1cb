"""One image to its two views, as 8-bit pixels: what a data worker does."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from smalti.data.datasets.dataset import ImageDataset
from smalti.data.decode import decode_scaled
from smalti.data.transforms.augment import Filter
from smalti.data.transforms.colour import channel_means, colour_matrix, recolour
from smalti.data.transforms.views import Box, TwoViews

_TORCH_HAS = {"bicubic": True, "lanczos": hasattr(torch.ops.aten, "_upsample_lanczos2d_aa")}
_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


@dataclass(frozen=True)
class Render:
    """Reads, decodes, crops and scales an image of `source`. Mirror and colours are left to the whole batch.

    Pixels that the crop does not need in full are decoded at a fraction of their resolution, where that loses nothing.
    """

    source: ImageDataset
    views: TwoViews

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the views: channels, height, width."""
        sizes = [self.views.size] if self.views.token_size is None else [self.views.size, self.views.token_size]
        return tuple((self.source.channels, *size) for size in sizes)

    def __len__(self) -> int:
        return len(self.source)

    def name(self, position: int) -> str:
        """Where an image is, for people."""
        return self.source.name(position)

    def __call__(self, position: int, key: int, out: Sequence[NDArray[np.uint8]]) -> None:
        """Write the views of an image into `out`.

        Raises:
            DataError: it cannot be read.
        """
        views, box = self.views, (0.0, 0.0, 1.0, 1.0)

        def least(height: int, width: int) -> float:
            nonlocal box
            box = views.crop.one(key, height, width)
            return 2 * max(views.size[0] / (box[2] * height), views.size[1] / (box[3] * width))

        data = self.source.read(position)
        pixels = decode_scaled(data, self.source.name(position), self.source.channels, least)
        if views.jitter_when == "before_crop":
            pixels = _jittered(pixels, views.jitter(np.array([key], np.uint64)))
        part = _cut(pixels, box)
        _resize(part, out[0], "bicubic")
        if len(out) > 1:
            _resize(part, out[1], "lanczos")


def _cut(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """The box, in whole pixels and of at least one."""
    height, width = pixels.shape[:2]
    tall, wide = max(round(box[2] * height), 1), max(round(box[3] * width), 1)
    top, left = min(round(box[0] * height), height - tall), min(round(box[1] * width), width - wide)
    return pixels[top : top + tall, left : left + wide]


def _resize(pixels: NDArray[np.uint8], out: NDArray[np.uint8], filter: Filter) -> None:
    """Scale H W C to the size of `out`, C h w, with anti-aliasing."""
    if _TORCH_HAS[filter]:  # eight times as fast as Pillow, and at most two grey levels away
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        torch.from_numpy(out).copy_(F.interpolate(image, out.shape[1:], mode=filter, antialias=True)[0])
    else:
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        scaled = np.asarray(picture.resize(out.shape[:0:-1], _PILLOW[filter]))
        out[:] = scaled.reshape(*scaled.shape[:2], -1).transpose(2, 0, 1)


def _jittered(pixels: NDArray[np.uint8], factors: NDArray[np.float64]) -> NDArray[np.uint8]:
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    change = colour_matrix(torch.from_numpy(factors).float(), channel_means(image))
    changed = recolour(image, *change, torch.tensor([False]))
    return np.ascontiguousarray(changed[0].mul_(255).round_().byte().permute(1, 2, 0).numpy())
