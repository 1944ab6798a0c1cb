"""The layers of a vision Transformer, and how their weights are initialised; parameters have timm's names."""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.contracts import Grid
from smalti.functional.gelu import gelu
from smalti.functional.noise import uniform_noise
from smalti.functional.patches import gather_rows
from smalti.functional.positions import bias_between, bias_rows, num_rows, position_bias, relative_position_index

T = TypeVar("T")
Init: TypeAlias = Literal["uniform", "trunc1", "trunc2", "width", "xavier"]


class PatchEmbed(nn.Module):
    """Normalise pixels, cut the image into patches and project each to width D: E x^p of BEiT §2.2.

    Mean and standard deviation are part of the network by its configuration, not of its state dict; input is in [0, 1].
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


class RelativePositionBias(nn.Module):
    """A learned bias of attention per head and offset between two patches, shared by all blocks; zero at the start."""

    relative_position_index: Tensor

    def __init__(self, grid: Grid, num_heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_rows(grid), num_heads))
        self.register_buffer("relative_position_index", relative_position_index(grid), persistent=False)

    def forward(self) -> Float[Tensor, "heads S S"]:
        return position_bias(self.relative_position_bias_table, self.relative_position_index)


def attend(
    q: Float[Tensor, "B heads K d"],
    k: Float[Tensor, "B heads S d"],
    v: Float[Tensor, "B heads S d"],
    bias: Float[Tensor, "heads K S"] | Float[Tensor, "B heads K S"] | None = None,
) -> Float[Tensor, "B heads K d"]:
    """softmax(q kᵀ / √d + bias) v, for K ≤ S queries.

    On CPUs this explicit form trains faster than the fused kernel, whose backward pass takes a fifth of a step.
    """
    bias = None if bias is None else bias.to(q.dtype)
    if q.is_cuda:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias[None] if bias is not None and bias.dim() == 3 else bias
        )
    return attention_weights(q, k, bias) @ v


def attention_weights(
    q: Float[Tensor, "B heads K d"],
    k: Float[Tensor, "B heads S d"],
    bias: Float[Tensor, "heads K S"] | Float[Tensor, "B heads K S"] | None = None,
) -> Float[Tensor, "B heads K S"]:
    """softmax(q kᵀ / √d + bias): the share of each of S positions in what K queries read, in [0, 1]."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    scores = scores if bias is None else scores + bias
    return torch.softmax(scores, dim=-1, dtype=scores.dtype)


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: D.
        num_heads: divides D.
        k_bias: False for no bias of keys, which has no effect on the softmax; those of queries and values are separate
            parameters then, as in the released code.
        grid: rows and columns of patches, where this layer has its own relative position bias.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, *, k_bias: bool = True, grid: Grid | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=k_bias)
        self.q_bias = None if k_bias else nn.Parameter(torch.zeros(dim))
        self.v_bias = None if k_bias else nn.Parameter(torch.zeros(dim))
        self.relative_position_bias_table = None
        if grid is not None:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(num_rows(grid), num_heads))
            self.register_buffer("relative_position_index", relative_position_index(grid), persistent=False)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        bias: Float[Tensor, "heads S S"] | Float[Tensor, "B heads S S"] | None = None,
        at: Int[Tensor, "B K"] | None = None,
        where: Int[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B K D"]:
        q, k, v, bias = self._heads(x, bias, at, where)
        return self.proj(attend(q, k, v, bias).transpose(1, 2).flatten(2))

    def weights(
        self,
        x: Float[Tensor, "B S D"],
        bias: Float[Tensor, "heads S S"] | Float[Tensor, "B heads S S"] | None = None,
        where: Int[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B heads S S"]:
        """How much each position attends to each other one, as `forward` computes it; a row sums to 1."""
        q, k, _, bias = self._heads(x, bias, None, where)
        return attention_weights(q, k, None if bias is None else bias.to(q.dtype))

    def _heads(
        self,
        x: Float[Tensor, "B S D"],
        bias: Float[Tensor, "heads S S"] | Float[Tensor, "B heads S S"] | None,
        at: Int[Tensor, "B K"] | None,
        where: Int[Tensor, "B S"] | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries (B heads K d), keys and values (B heads S d), and the bias of their attention."""
        q, k, v = self._qkv(x).split(x.shape[-1], dim=-1)
        if self.relative_position_bias_table is not None:
            bias = position_bias(self.relative_position_bias_table, self.relative_position_index)
            bias = bias if where is None else bias_between(bias, where)
        if at is not None:
            q = gather_rows(q, at)
            bias = None if bias is None else bias_rows(bias, at)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        return q, k, v, bias

    def _qkv(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S 3*D"]:
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(x)
        return F.linear(x, self.qkv.weight, torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]))


class Mlp(nn.Module):
    """The feed-forward network: D -> hidden -> D with an exact GELU, without dropout."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        return self.fc2(gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm Transformer block: x + γ₁·attn(norm(x)), then x + γ₂·mlp(norm(x)).

    `init_values` is the initial γ of LayerScale; None for no LayerScale. `keep` scales each branch of each sample, for
    stochastic depth (`drop_path_keep`). `bias` is the shared relative position bias, added to the attention scores.
    `at` are the positions whose output is needed (default: all); what only other outputs need is not computed.
    `where` are the positions of the input tokens in the whole sequence (default: all); not together with `at`.

    Reference: Touvron et al. 2021 (CaiT) for LayerScale.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        init_values: float | None = None,
        k_bias: bool = True,
        grid: Grid | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, k_bias=k_bias, grid=grid)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.gamma_1 = None if init_values is None else nn.Parameter(torch.full((dim,), init_values))
        self.gamma_2 = None if init_values is None else nn.Parameter(torch.full((dim,), init_values))

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        keep: Float[Tensor, "2 B 1 1"] | None = None,
        bias: Float[Tensor, "heads S S"] | Float[Tensor, "B heads S S"] | None = None,
        at: Int[Tensor, "B K"] | None = None,
        where: Int[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B K D"]:
        first, second = (None, None) if keep is None else (keep[0], keep[1])
        attended = _scaled(self.attn(self.norm1(x), bias, at, where), self.gamma_1, first)
        x = (x if at is None else gather_rows(x, at)) + attended
        return x + _scaled(self.mlp(self.norm2(x)), self.gamma_2, second)


def _scaled(
    branch: Float[Tensor, "B S D"], gamma: Float[Tensor, "D"] | None, keep: Float[Tensor, "B 1 1"] | None
) -> Float[Tensor, "B S D"]:
    """A branch times γ and `keep`, in the number format of the branch, which under autocast differs from that of γ."""
    branch = branch if gamma is None else gamma.to(branch.dtype) * branch
    return branch if keep is None else keep * branch


def drop_path_keep(key: Int[Tensor, "B"], depth: int, rate: float, stream: int = 1) -> Float[Tensor, "depth 2 B 1 1"]:
    """Factors of stochastic depth: for each block, branch and sample 0 with probability p, else 1/(1-p).

    p rises linearly from 0 in the first block to `rate` in the last. The draws are a function of the sample's key
    and of the `stream`.

    Reference: Huang et al. 2016; BEiT §2.5 (0.1).
    """
    p = torch.linspace(0, rate, depth, device=key.device)[:, None, None]
    draws = uniform_noise(key, 2 * depth, stream).t().reshape(depth, 2, -1)
    return ((draws >= p) / (1 - p))[..., None, None]


def seeded(seed: int, make: Callable[[], T]) -> T:
    """The result of `make` with torch's generator seeded; the state of the generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


@torch.no_grad()
def initialise(model: nn.Module, init: Init, embed_dim: int, below: int = 0) -> None:
    """Draw all weights; biases 0, LayerNorm 1 and 0, then rescale the output matrices of block l by 1/√(2l).

    There are `below` blocks before those of the model, which count.

    LayerScale and tables of relative positions keep the values from their constructors.

    - `uniform`: as in the paper, every weight uniform in [-0.02, 0.02]; standard deviation 0.01155. Suited to D = 768:
      at D = 128 activations become too small and the first hundreds of steps learn nothing.
    - `trunc1`: as in the released code, N(0, 0.02²) truncated at ±0.02; standard deviation 0.01079.
    - `trunc2`: N(0, 0.02²) truncated at ±0.04, as many descriptions have it; standard deviation 0.01759.
    - `width`: uniform with standard deviation 0.02·√(768 / D); tokens and positions as in `uniform`.
    - `xavier`: uniform in ±√(6 / (fan_in + fan_out)) for matrices; tokens and positions as in `uniform`.

    Reference: BEiT §2.5; the released code, modeling_pretrain.py.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1)
        elif "gamma" not in name and not name.endswith("bias_table"):
            is_token = name.endswith(("cls_token", "pos_embed", "mask_token"))
            _draw(parameter, "uniform" if is_token and init in ("width", "xavier") else init, embed_dim)
    for layer, block in enumerate(getattr(model, "blocks", []), start=below + 1):
        block.attn.proj.weight.div_(math.sqrt(2 * layer))
        block.mlp.fc2.weight.div_(math.sqrt(2 * layer))


def _draw(parameter: Tensor, init: Init, embed_dim: int) -> None:
    match init:
        case "uniform":
            parameter.uniform_(-0.02, 0.02)
        case "trunc1":
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.02, b=0.02)
        case "trunc2":
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
        case "width":
            bound = math.sqrt(3) * 0.02 * math.sqrt(768 / embed_dim)
            parameter.uniform_(-bound, bound)
        case "xavier":
            nn.init.xavier_uniform_(parameter.view(len(parameter), -1))
