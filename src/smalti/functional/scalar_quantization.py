"""Finite scalar quantisation (FSQ): each of d numbers is rounded to one of a few levels; there is no learned codebook.

Numbers are scaled to [-1, 1]: a dimension with L levels has the values (k - ⌊L/2⌋) / ⌊L/2⌋ for k = 0 ... L - 1.

Reference: Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2023, §3.1 and appendix A.1.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MARGIN = 1e-3
"""Distance that numbers keep from the outermost rounding boundaries."""


def bounded(x: Float[Tensor, "*B d"], levels: Sequence[int]) -> Float[Tensor, "*B d"]:
    """Squash numbers by tanh into the range that rounds to exactly L values in each dimension.

    With an even L the range is half a level off centre, so that zero is still one of the values and maps to itself.

    Args:
        x: any numbers.
        levels: L of each of the d dimensions, 3 or more.
    """
    count = torch.tensor(levels, dtype=x.dtype, device=x.device)
    half = (count - 1) * (1 - _MARGIN) / 2
    offset = 0.5 * (count % 2 == 0)
    return (torch.tanh(x + torch.atanh(offset / half)) * half - offset) / (count // 2)


def rounded(x: Float[Tensor, "*B d"], levels: Sequence[int]) -> Float[Tensor, "*B d"]:
    """The nearest level of each bounded number."""
    half = torch.tensor(levels, dtype=x.dtype, device=x.device) // 2
    return torch.round(x * half) / half


def ids_of(values: Float[Tensor, "*B d"], levels: Sequence[int]) -> Int[Tensor, "*B"]:
    """The index of each code, in [0, product of `levels`); the first dimension varies fastest."""
    count = torch.tensor(levels, device=values.device)
    digits = torch.round(values * (count // 2)).long() + count // 2
    return (digits * _places(count)).sum(-1)


def values_of(ids: Int[Tensor, "*B"], levels: Sequence[int]) -> Float[Tensor, "*B d"]:
    """The inverse of `ids_of`."""
    count = torch.tensor(levels, device=ids.device)
    digits = ids[..., None] // _places(count) % count
    return (digits - count // 2).float() / (count // 2)


def _places(count: Int[Tensor, "d"]) -> Int[Tensor, "d"]:
    """The place value of each dimension."""
    return count.cumprod(0) // count
