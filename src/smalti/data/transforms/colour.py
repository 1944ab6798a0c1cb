"""Brightness, contrast and saturation of a whole batch: one 3 x 4 colour matrix a sample, one clamp.

    out = b·c·(s·x + (1 - s)·g(x)) + (1 - c)·b·m        g(x): grey of a pixel, m: mean grey of the image

is what Pillow's three enhancers give in any order, before they round and clamp.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_CACHED = 1 << 18
"""Bytes that stay in a processor's cache from one operation to the next."""
_GREY = (0.299, 0.587, 0.114)
"""ITU-R 601, as Pillow converts to grey."""


def colour_matrix(
    factors: Float[Tensor, "B 3"], mean: Float[Tensor, "B C"]
) -> tuple[Float[Tensor, "B C C"], Float[Tensor, "B C 1"]]:
    """Matrix and offset for images with values in [0, 1].

    Args:
        factors: of brightness, contrast and saturation.
        mean: mean of each channel over the image that contrast turns around.
    """
    channels = mean.shape[1]
    brightness, contrast, saturation = factors[:, :, None, None].unbind(1)
    grey = torch.tensor(_GREY if channels == 3 else (1.0,), device=mean.device)
    mixed = saturation * torch.eye(channels, device=mean.device) + (1 - saturation) * grey.expand(channels, channels)
    # Not mean @ grey: a product of matrices may round an image otherwise when others are beside it.
    level = ((1 - contrast) * brightness)[..., 0] * (mean * grey).sum(1, keepdim=True)
    return brightness * contrast * mixed, level.expand(-1, channels)[..., None]


def channel_means(images: Tensor) -> Float[Tensor, "B C"]:
    """Mean of every channel of each image, in [0, 1].

    Args:
        images: B C H W, uint8 or float in [0, 1].
    """
    means = torch.cat([images[part].float().mean((2, 3)) for part in _parts(images)])
    return means / 255 if images.dtype == torch.uint8 else means


def recolour(
    images: Tensor, matrix: Float[Tensor, "B C C"], offset: Float[Tensor, "B C 1"], flip: Bool[Tensor, "B"]
) -> Float[Tensor, "B C H W"]:
    """Apply a colour matrix and an offset to each image, B C H W, clamp to [0, 1], and mirror some of them."""
    scaled = matrix / 255 if images.dtype == torch.uint8 else matrix
    result = torch.empty(images.shape, device=images.device)
    for part in _parts(images):
        flat = _mirrored(images[part], flip[part]).flatten(2).float()
        torch.baddbmm(offset[part], scaled[part], flat, out=result[part].flatten(2)).clamp_(0, 1)
    return result


def mirrored(images: Tensor, flip: Bool[Tensor, "B"]) -> Tensor:
    """A copy, B C H W, with some of the images mirrored."""
    result = torch.empty_like(images)
    for part in _parts(images):
        result[part] = _mirrored(images[part], flip[part])
    return result


def _mirrored(images: Tensor, flip: Bool[Tensor, "B"]) -> Tensor:
    if len(images) == 1:
        return images.flip(-1) if flip else images
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def _parts(images: Tensor) -> list[slice]:
    """On a CPU, so many images at a time as stay in its cache; elsewhere all at once."""
    an_image = 4 * images[0].numel()
    step = max(1, _CACHED // an_image) if images.device.type == "cpu" else len(images)
    return [slice(start, start + step) for start in range(0, len(images), step)]
