"""RandAugment: a few operations on each image, drawn from a list, all of about the same strength.

Operations work on whole batches, with 8-bit levels as Pillow computes them. `levels` is a float tensor (B, C, H, W) of
whole numbers in [0, 255]; `amount` is a float tensor (B,), one number per image. Autocontrast and equalize are lookup
tables of 256 entries for each channel of each image.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from smalti.core.compute import has_float64, on_device
from smalti.core.config import require, setting
from smalti.core.contracts import Batch
from smalti.core.rng import Keys, Stream, fold, uniform
from smalti.data.transforms.batch_transforms import keys_of
from smalti.models.vit import as_unit_range

_FILL = (124.0, 116.0, 104.0)
"""RGB fill for pixels outside the image: ImageNet's mean, as in timm."""
Level = NDArray[np.float64]


def autocontrast(levels: Tensor, amount: Tensor) -> Tensor:
    """Stretch each channel to the range 0 to 255; a channel with a single level is unchanged.

    The table is computed in float64, as Pillow does; on the CPU where the device has none.
    """
    ends = torch.stack([levels.amin((2, 3)), levels.amax((2, 3))])[..., None]
    low, high = (ends if has_float64(ends.device) else ends.cpu()).double()
    every = torch.arange(256, device=low.device)
    scale = (255 / (high - low)).nan_to_num(posinf=1.0)
    table = torch.where(high > low, (every * scale - low * scale).floor(), every)
    return _looked_up(levels, on_device(table.to(levels.dtype), levels.device))


def equalize(levels: Tensor, amount: Tensor) -> Tensor:
    """Equalize the histogram of each channel: levels become about equally frequent."""
    flat = levels.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=levels.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (counts.sum(2, keepdim=True) - last) // 255
    table = (step // 2 + counts.cumsum(2) - counts) // step.clamp_min(1)
    return _looked_up(levels, torch.where(step > 0, table, torch.arange(256, device=levels.device)))


def invert(levels: Tensor, amount: Tensor) -> Tensor:
    """Replace every level by 255 - level."""
    return 255 - levels


def posterize(levels: Tensor, amount: Tensor) -> Tensor:
    """Keep the `amount` highest bits of every level, 0 to 8."""
    width = torch.exp2(8 - amount)[:, None, None, None]
    return (levels / width).floor() * width


def solarize(levels: Tensor, amount: Tensor) -> Tensor:
    """Invert the levels that are at least `amount`."""
    return torch.where(levels >= amount[:, None, None, None], 255 - levels, levels)


def solarize_add(levels: Tensor, amount: Tensor) -> Tensor:
    """Add `amount` to the levels below 128; clamp to 255."""
    return torch.where(levels < 128, (levels + amount[:, None, None, None]).clamp(max=255), levels)


def brightness(levels: Tensor, amount: Tensor) -> Tensor:
    """Scale brightness: amount 0 gives black, 1 the image."""
    return blend(torch.zeros_like(levels), levels, amount)


def contrast(levels: Tensor, amount: Tensor) -> Tensor:
    """Scale contrast: amount 0 gives the mean grey of the image everywhere, 1 the image."""
    total, count = grey(levels).long().sum((2, 3), keepdim=True), levels.shape[-2] * levels.shape[-1]
    mean = ((2 * total + count) // (2 * count)).to(levels.dtype)
    return blend(mean.expand_as(levels), levels, amount)


def color(levels: Tensor, amount: Tensor) -> Tensor:
    """Scale saturation: amount 0 gives the image in grey, 1 the image; grey images are unchanged."""
    return blend(grey(levels).expand_as(levels), levels, amount)


def sharpness(levels: Tensor, amount: Tensor) -> Tensor:
    """Scale sharpness: amount 0 gives a smoothed image, 1 the image. The border pixels are unchanged."""
    kernel = torch.ones(3, 3, device=levels.device)
    kernel[1, 1] = 5
    inner = F.conv2d(levels.flatten(0, 1)[:, None], kernel[None, None])
    smooth = levels.clone()
    smooth[..., 1:-1, 1:-1] = (inner / 13 + 0.5).floor().unflatten(0, levels.shape[:2])[:, :, 0]
    return blend(smooth, levels, amount)


def rotate(levels: Tensor, amount: Tensor) -> Tensor:
    """Rotate the image around its centre, `amount` degrees counterclockwise."""
    height, width = levels.shape[-2:]
    turn = torch.deg2rad(amount)
    cos, sin = turn.cos(), turn.sin()
    right = width / 2 - cos * width / 2 + sin * height / 2
    down = height / 2 - sin * width / 2 - cos * height / 2
    return transformed(levels, torch.stack([cos, -sin, right, sin, cos, down], 1))


def shear_x(levels: Tensor, amount: Tensor) -> Tensor:
    """Shift each row to the left, `amount` pixels for each row above it."""
    return transformed(levels, _matrix(amount, 1))


def shear_y(levels: Tensor, amount: Tensor) -> Tensor:
    """Shift each column up, `amount` pixels for each column left of it."""
    return transformed(levels, _matrix(amount, 3))


def translate_x(levels: Tensor, amount: Tensor) -> Tensor:
    """Shift the image to the left by a share of its width."""
    return transformed(levels, _matrix(amount * levels.shape[-1], 2))


def translate_y(levels: Tensor, amount: Tensor) -> Tensor:
    """Shift the image up by a share of its height."""
    return transformed(levels, _matrix(amount * levels.shape[-2], 5))


def transformed(levels: Tensor, matrix: Float[Tensor, "B 6"]) -> Tensor:
    """Affine transform: output pixel (x, y) is read bilinearly at (a·x + b·y + c, d·x + e·y + f); outside is filled.

    Args:
        levels: (B, C, H, W), float, whole numbers in [0, 255].
        matrix: a, b, c, d, e, f for each image, in pixels.
    """
    height, width = levels.shape[-2:]
    rows, columns = (torch.arange(length, device=levels.device) + 0.5 for length in (height, width))
    a, b, c, d, e, f = matrix[..., None, None].unbind(1)
    x = a * columns + b * rows[:, None] + c
    y = d * columns + e * rows[:, None] + f
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], dim=-1)
    read = F.grid_sample(levels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height))[:, None]
    fill = on_device(torch.tensor(_FILL), levels.device)
    fill = grey(fill[None, :, None, None]) if levels.shape[1] != 3 else fill[None, :, None, None]
    return torch.where(inside, read.round(), fill)


def blend(other: Tensor, levels: Tensor, amount: Tensor) -> Tensor:
    """Interpolate or extrapolate: amount 0 gives `other`, 1 the image. Clamped to [0, 255] and rounded down."""
    return (other + amount[:, None, None, None] * (levels - other)).clamp(0, 255).floor()


def grey(levels: Tensor) -> Tensor:
    """ITU-R 601 grey level: (B, 1, H, W), float, whole numbers in [0, 255]; else the channels as they are."""
    if levels.shape[1] != 3:
        return levels
    red, green, blue = levels.split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor()


def _matrix(amount: Tensor, place: int) -> Float[Tensor, "B 6"]:
    """The identity transform with the entry at `place` (0 to 5) set to `amount` (B,)."""
    matrix = on_device(torch.tensor([1.0, 0, 0, 0, 1, 0]), amount.device).repeat(len(amount), 1)
    matrix[:, place] = amount
    return matrix


def _looked_up(levels: Tensor, table: Tensor) -> Tensor:
    """The entry of a table of whole numbers, (B, C, 256), for every level, clamped to [0, 255]: (B, C, H, W)."""
    entries = table.clamp(0, 255).to(levels.dtype)
    return entries.gather(2, levels.flatten(2).long()).reshape(levels.shape)


class Operation(NamedTuple):
    """An operation, and the function from level (0 to 1) and sign (-1 or 1) to its amount."""

    change: Callable[[Tensor, Tensor], Tensor]
    amount: Callable[[Level, Level], Level]


def _enhance(level: Level, sign: Level) -> Level:
    return np.maximum(0.1, 1 + 0.9 * level * sign)


def _none(level: Level, sign: Level) -> Level:
    return level


OPERATIONS = (
    Operation(autocontrast, _none),
    Operation(equalize, _none),
    Operation(invert, _none),
    Operation(rotate, lambda level, sign: 30 * level * sign),
    Operation(posterize, lambda level, sign: 4 - np.floor(4 * level)),
    Operation(solarize, lambda level, sign: 256 - np.floor(256 * level)),
    Operation(solarize_add, lambda level, sign: np.floor(110 * level)),
    Operation(color, _enhance),
    Operation(contrast, _enhance),
    Operation(brightness, _enhance),
    Operation(sharpness, _enhance),
    Operation(shear_x, lambda level, sign: 0.3 * level * sign),
    Operation(shear_y, lambda level, sign: 0.3 * level * sign),
    Operation(translate_x, lambda level, sign: 0.45 * level * sign),
    Operation(translate_y, lambda level, sign: 0.45 * level * sign),
)


@dataclass(frozen=True)
class RandAugment:
    """So many operations in turn on each image, each of the fifteen equally likely.

    Reference: Cubuk et al. 2020; timm, data/auto_augment.py, `rand-m9-mstd0.5-inc1` (list, ranges, probability), which
    the released code fine-tunes with.
    Differs: geometry reads pixels bilinearly (timm here: bicubic) and rounds; operations are drawn for each image from
    its key.
    """

    operations: int = setting(0, "for each image; 0: none", "released code: 2")
    magnitude: float = setting(9.0, "strength, 0 to 10", "released code")
    spread: float = setting(0.5, "standard deviation of the strength", "released code")
    probability: float = setting(0.5, "that an operation that was drawn is applied", "timm")

    def __post_init__(self) -> None:
        require(self.operations >= 0, f"{self.operations} operations", "use 0 or more")
        require(0 <= self.magnitude <= 10, f"a magnitude of {self.magnitude}", "use 0 to 10")
        require(self.spread >= 0, f"a spread of magnitudes of {self.spread}", "use 0 or more")
        require(0 <= self.probability <= 1, f"a probability of operations of {self.probability}", "use 0 to 1")

    def __call__(self, batch: Batch) -> Batch:
        """The batch with changed images: (B, C, H, W), float in [0, 1]."""
        if self.operations == 0:
            return batch
        levels = as_unit_range(batch.image).mul(255).round()
        for turn in range(self.operations):
            kind, level, sign = self.drawn(keys_of(batch), turn)
            for number, operation in enumerate(OPERATIONS):
                chosen = np.flatnonzero(kind == number)
                if len(chosen):
                    amount = torch.from_numpy(operation.amount(level[chosen], sign[chosen])).to(levels.dtype)
                    rows = on_device(torch.from_numpy(chosen), levels.device)
                    levels[rows] = operation.change(levels[rows], on_device(amount, levels.device))
        return replace(batch, image=levels / 255)

    def drawn(self, keys: Keys, turn: int) -> tuple[NDArray[np.int64], Level, Level]:
        """For each key, arrays (B,): number of the operation, -1 for none; its level in [0, 1]; its sign, -1 or 1."""
        kind, applied, sign, radius, angle = uniform(fold(keys, Stream.AUGMENT, turn), 5).T
        normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)
        level = np.clip(self.magnitude + self.spread * normal, 0, 10) / 10
        chosen = np.floor(kind * len(OPERATIONS)).astype(np.int64)
        return np.where(applied < self.probability, chosen, -1), level, np.where(sign < 0.5, -1.0, 1.0)
