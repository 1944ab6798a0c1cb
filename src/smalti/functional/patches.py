"""Images as rows of patches, and back."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

_CHUNK = 64
"""Images whose patches are compared at a time."""


def patchify(images: Shaped[Tensor, "B C H W"], size: int) -> Shaped[Tensor, "B N P"]:
    """Cut images into non-overlapping squares of `size` pixels: x to x^p.

    Returns:
        N = (H / size)·(W / size) patches in row-major order, each flattened channel first to P = C·size² values, the
        order of a strided convolution.

    Reference: BEiT §2.1.1.
    """
    b, c, height, width = images.shape
    grid = images.reshape(b, c, height // size, size, width // size, size)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * size * size)


def unpatchify(patches: Shaped[Tensor, "B N P"], size: int, grid: tuple[int, int]) -> Shaped[Tensor, "B C H W"]:
    """The inverse of `patchify` on a grid of rows and columns."""
    b, _, p = patches.shape
    h, w = grid
    tiles = patches.reshape(b, h, w, p // (size * size), size, size)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, h * size, w * size)


def patches_to_image(ids: Int[Tensor, "B h w"], patches: Float[Tensor, "V P"], size: int) -> Float[Tensor, "B C H W"]:
    """The image in which every token is replaced by the patch of its code."""
    return F.pixel_shuffle(F.embedding(ids, patches).permute(0, 3, 1, 2), size)


def varied_patches(images: Shaped[Tensor, "B C H W"], size: int) -> Bool[Tensor, "B N"]:
    """True where a patch has more than one colour.

    Statistics of a codebook leave the others out: on Fashion-MNIST 43 % of the patches are black, and rightly share one
    visual token.
    """
    parts = (patchify(part, size).unflatten(-1, (images.shape[1], -1)) for part in images.split(_CHUNK))
    return torch.cat([torch.any(patches != patches[..., :1], dim=(-1, -2)) for patches in parts])


def normalised_patches(
    patches: Float[Tensor, "*B P"],
) -> tuple[Float[Tensor, "*B P"], Float[Tensor, "*B 1"], Float[Tensor, "*B 1"]]:
    """(x - mean) / √(variance + 1e-6) of each patch over its P values, then that mean and that square root.

    Reference: He et al. 2021, MAE, §4.1 and its code: the variance is the unbiased one.
    """
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    scale = (variance + 1e-6).sqrt()
    return (patches - mean) / scale, mean, scale


def gather_rows(x: Float[Tensor, "B S D"], at: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
    """The rows of each sample at the positions `at`, in [0, S)."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


def visible_index(mask: Bool[Tensor, "B N"], num_visible: int) -> Int[Tensor, "B {num_visible}"]:
    """Positions of the visible patches in rising order, where every image has `num_visible` of them."""
    return mask.to(torch.uint8).argsort(dim=1, stable=True)[:, :num_visible]
