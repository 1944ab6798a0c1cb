"""Absolute position embeddings."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def sincos_2d(grid: tuple[int, int], dim: int, amplitude: float = 0.1) -> Float[Tensor, "N {dim}"]:
    """Sines and cosines of row and column at dim/4 frequencies, from 2 to 1/50 radians per patch.

    Args:
        grid: rows and columns of patches.
        dim: D, a multiple of 4.
        amplitude: of the sines; small compared with patch embeddings.

    Reference: Vaswani et al. 2017, in two dimensions as by Chen et al. 2021 (MoCo v3).
    Differs: initialises learnable embeddings of small grids; the usual wavelengths reach 10 000.
    """
    frequency = 2.0 * 100.0 ** (-torch.arange(dim // 4) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [place.reshape(-1, 1) * frequency for place in (row, column)]
    return amplitude * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def resize_positions(
    pos_embed: Float[Tensor, "1 S D"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "1 _S D"]:
    """Position embeddings of grid `old`, interpolated bicubically to grid `new`; that of [S] is kept.

    Reference: released code, run_class_finetuning.py.
    """
    if old == new:
        return pos_embed
    table = pos_embed[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)
    resized = F.interpolate(table, size=new, mode="bicubic", align_corners=False)
    return torch.cat([pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
