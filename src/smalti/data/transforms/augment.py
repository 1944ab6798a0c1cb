"""Cropping, scaling and mirroring a whole batch in two matrix products.

Resampling is linear and separable: out = R · image · Cᵀ, with one row matrix R and one column matrix C a sample. The
crop box, the filter (with anti-aliasing when shrinking, as Pillow does) and the mirror are all in the matrices.
"""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from smalti.data.transforms.views import Crop

Filter: TypeAlias = Literal["bicubic", "lanczos"]


def resample(images: Tensor, crop: Crop, size: tuple[int, int], filter: Filter = "bicubic") -> Float[Tensor, "B C h w"]:
    """Cut each image's box and scale it to `size`.

    Args:
        images: B C H W, uint8 or float in [0, 1].
        crop: a box and a mirror for each image.
        size: height and width of the result in pixels.
        filter: bicubic (a = -0.5) for the patch view, lanczos (a = 3) for the token view, as the released code has it.

    Returns:
        Float in [0, 1].
    """
    height, width = images.shape[-2:]
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images
    box = torch.from_numpy(crop.box).to(pixels.device, torch.float32)
    flip = torch.from_numpy(crop.flip).to(pixels.device)
    rows = _resampling_matrix(box[:, 0] * height, box[:, 2] * height, height, size[0], filter)
    columns = _resampling_matrix(box[:, 1] * width, box[:, 3] * width, width, size[1], filter)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return (rows[:, None] @ pixels @ columns[:, None].transpose(-2, -1)).clamp_(0, 1)


def _resampling_matrix(start: Tensor, length: Tensor, size_in: int, size_out: int, filter: Filter) -> Tensor:
    """B x size_out x size_in weights that read `length` pixels from `start` on; every row sums to 1."""
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
