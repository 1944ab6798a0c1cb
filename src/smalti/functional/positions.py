"""Positions of patches: absolute embeddings, and the relative bias of attention; both for another grid.

The relative bias is a learned table with one row per offset between two patches, in reading order from (1-h, 1-w) to
(h-1, w-1), then three rows for pairs with [S].
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_EXTRA = 3
"""Rows at the end of a table: [S] attends to a patch, a patch to [S], [S] to itself."""


def sincos_2d(grid: tuple[int, int], dim: int, amplitude: float) -> Float[Tensor, "N {dim}"]:
    """Sines and cosines of row and column at dim/4 frequencies, from 2 to 1/50 radians per patch.

    Args:
        grid: rows and columns of patches.
        dim: D, a multiple of 4.
        amplitude: of the sines.

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


def num_rows(grid: tuple[int, int]) -> int:
    """The number of rows of the table of an h x w grid: (2h-1)(2w-1) + 3."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + _EXTRA


def relative_position_index(grid: tuple[int, int]) -> Int[Tensor, "S S"]:
    """The row of the table for every query (first axis) and key (second); position 0 is [S], S = 1 + h·w.

    Reference: released code; Liu et al. 2021 (Swin).
    """
    places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
    offset = places[:, None] - places[None] + torch.tensor([grid[0] - 1, grid[1] - 1])
    index = torch.empty(1 + len(places), 1 + len(places), dtype=torch.int64)
    index[1:, 1:] = offset[..., 0] * (2 * grid[1] - 1) + offset[..., 1]
    index[0, :], index[:, 0], index[0, 0] = (num_rows(grid) - _EXTRA + extra for extra in range(_EXTRA))
    return index


def position_bias(table: Float[Tensor, "rows heads"], index: Int[Tensor, "S S"]) -> Float[Tensor, "heads S S"]:
    """The bias that is added to the attention scores of each head.

    Looked up by an embedding and not by `table[index]`, whose backward pass on several threads sums in an order that
    differs from call to call.
    """
    return F.embedding(index, table).permute(2, 0, 1).contiguous()


def bias_rows(bias: Float[Tensor, "heads S S"], at: Int[Tensor, "B K"]) -> Float[Tensor, "B heads K S"]:
    """The rows of the bias for the queries `at` of each sample; looked up as in `position_bias`."""
    found: Tensor = F.embedding(at, bias.transpose(0, 1).flatten(1)).unflatten(-1, (len(bias), -1))
    return found.transpose(1, 2)


def bias_between(bias: Float[Tensor, "heads S S"], at: Int[Tensor, "B K"]) -> Float[Tensor, "B heads K K"]:
    """The bias of the positions `at` of each sample towards one another; an embedding, as in `position_bias`."""
    pairs = at[:, :, None] * bias.shape[-1] + at[:, None]
    found: Tensor = F.embedding(pairs, bias.flatten(1).t())
    return found.permute(0, 3, 1, 2)


def resize_table(
    table: Float[Tensor, "rows heads"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "new_rows heads"]:
    """The table of grid `old`, interpolated to grid `new`, for images with more pixels of the same content.

    Offsets 1, 2, 3, ... of the old grid are placed at 1, 1+q, 1+q+q², ... patches of the new grid, with the q in
    [1.01, 1.5] that places the largest old offset at the largest new one. So near offsets are kept, and far ones are
    stretched. In between, a cubic spline interpolates in each direction; beyond, the last value is used. The three rows
    of [S] are kept.

    Reference: released code, run_class_finetuning.py.
    Differs: grids need not be square, and a side that stays the same keeps its values.
    """
    body = table[:-_EXTRA].double().unflatten(0, (2 * old[0] - 1, 2 * old[1] - 1))
    rows, columns = (_stretch(a, b) for a, b in zip(old, new, strict=True))
    resized = torch.einsum("yi,xj,ijk->yxk", rows, columns, body.cpu()).flatten(0, 1)
    return torch.cat([resized.to(table), table[-_EXTRA:]])


def _stretch(old: int, new: int) -> Float[Tensor, "{2*new-1} {2*old-1}"]:
    """The matrix of the interpolation along one side, from the offsets of `old` patches to those of `new`."""
    if old == new:
        return torch.eye(2 * old - 1, dtype=torch.float64)
    positive = geometric_places(old - 1, new - 1)
    places = torch.cat([-positive.flip(0), torch.zeros(1, dtype=torch.float64), positive])
    return spline_weights(places, torch.arange(1 - new, new, dtype=torch.float64))


def geometric_places(num: int, reach: int) -> Float[Tensor, "{num}"]:
    """1, 1+q, 1+q+q², ...: `num` values, with the q in [1.01, 1.5] that brings the last closest to `reach`."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (q**num - 1) / (q - 1) > reach else (q, high)
    return torch.cumsum(((low + high) / 2) ** torch.arange(num, dtype=torch.float64), 0)


def spline_weights(places: Float[Tensor, "n"], wanted: Float[Tensor, "m"]) -> Float[Tensor, "m n"]:
    """Interpolation by a cubic spline as a matrix: from values at `places` to values at `wanted`.

    The spline has the not-a-knot condition at both ends; for three places it is a parabola. Outside of the places it is
    constant.

    Args:
        places: rising, symmetric about 0.
        wanted: where to evaluate.
    """
    wanted = wanted.clamp(places[0], places[-1])
    scale = places[-1].clamp(min=1)  # powers of numbers in [-1, 1] stay in range
    known = _truncated_powers(places / scale, places / scale)
    weights: Tensor = torch.linalg.solve(known, _truncated_powers(wanted / scale, places / scale), left=False)
    return weights


def _truncated_powers(x: Float[Tensor, "m"], places: Float[Tensor, "n"]) -> Float[Tensor, "m n"]:
    """The truncated power basis at `x`: 1, x, x², x³, and max(x - t, 0)³ for each knot t."""
    powers = x[:, None] ** torch.arange(min(len(places), 4))
    return torch.cat([powers, (x[:, None] - places[2:-2]).clamp(min=0) ** 3], dim=1)
