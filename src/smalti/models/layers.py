"""The layers of a vision Transformer, under timm's names."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.functional.gelu import gelu
from smalti.functional.noise import uniform_noise


class PatchEmbed(nn.Module):
    """Normalise pixels, cut the image into patches, project each to width D (BEiT §2.1.1).

    The normalisation lives here so that it travels with the weights: data code hands over uint8 or [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, patch_size: int, in_chans: int, embed_dim: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        return self.proj((images - self.mean) / self.std).flatten(2).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "B heads S d"]:
    """softmax(q kᵀ / √d) v.

    On CPUs the explicit form trains faster than the fused kernel, whose backward takes a fifth of a step.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return torch.softmax(scores, dim=-1, dtype=scores.dtype) @ v


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        b, s, d = x.shape
        heads = (b, s, self.num_heads, d // self.num_heads)
        q, k, v = (part.reshape(heads).transpose(1, 2) for part in self.qkv(x).split(d, dim=-1))
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(b, s, d))


class Mlp(nn.Module):
    """The feed-forward network: D -> hidden -> D with an exact GELU, no dropout."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        return self.fc2(gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm Transformer block: x + attn(norm(x)), then x + mlp(norm(x)).

    `keep` scales both branches, one number a sample and branch: stochastic depth decided outside (`drop_path_keep`).
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(
        self, x: Float[Tensor, "B S D"], keep: Float[Tensor, "2 B 1 1"] | None = None
    ) -> Float[Tensor, "B S D"]:
        if keep is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = x + keep[0] * self.attn(self.norm1(x))
        return x + keep[1] * self.mlp(self.norm2(x))


def drop_path_keep(key: Int[Tensor, "B"], depth: int, rate: float) -> Float[Tensor, "depth 2 B 1 1"]:
    """Stochastic depth as an input: for each block, branch and sample 0, or 1/(1-p), with p rising linearly to `rate`.

    Reference: Huang et al. 2016; BEiT §2.5 (0.1).
    """
    p = torch.linspace(0, rate, depth, device=key.device)[:, None, None]
    draws = uniform_noise(key, 2 * depth, stream=1).t().reshape(depth, 2, -1)
    return ((draws >= p) / (1 - p))[..., None, None]
