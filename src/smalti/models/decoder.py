"""What predicts masked patches from the encoder's output: a linear head (BEiT), or queries that attend to it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.config import require, setting
from smalti.core.contracts import Features, Grid, Masking
from smalti.functional.positions import sincos_2d
from smalti.models.layers import Init, Mlp, attend, attention_weights, initialise


@dataclass(frozen=True)
class Linear:
    """BEiT as published: mask tokens go through the encoder, and a linear head reads its output at their positions.

    Reference: BEiT §2.3, eq. 1.
    """

    predicted: ClassVar[float] = 1.0

    def num_visible(self, masking: Masking, grid: Grid) -> None:
        """The encoder sees all patches, the masked ones as mask tokens."""


@dataclass(frozen=True)
class CrossAttention:
    """The encoder sees [S] and the visible patches alone; a query for each masked patch reads its output.

    Queries do not see each other, so any share of the masked patches can be predicted without changing the others.

    Reference: He et al. 2021 (MAE) for an encoder without mask tokens; Fu et al. 2024 (CrossMAE) and Darcet et al. 2025
        (CAPI) for a decoder of cross-attention alone.
    Differs: what is predicted are visual tokens, as in BEiT; from MAE, positions of the decoder are fixed sines and
        cosines and there is no self-attention.
    """

    depth: int = setting(1, "blocks", "CrossMAE table 5: one is as good as more, fine-tuned")
    width: int | None = setting(None, "channels; none: as the backbone")
    num_heads: int | None = setting(None, "heads; none: as the backbone")
    mlp_ratio: float = setting(4.0, "width of the feed-forward layer / width")
    predicted: float = setting(1.0, "share of the masked patches that a training step predicts; all when measured")
    mix_layers: bool = setting(False, "each block reads a learned mixture of encoder layers", "CrossMAE §3.3")

    def __post_init__(self) -> None:
        require(self.depth >= 1, f"a decoder depth of {self.depth}", "use at least one block")
        require(0 < self.predicted <= 1, f"predicted is {self.predicted}", "choose a share in (0, 1]")
        require(0 < self.mlp_ratio <= 64, f"mlp_ratio is {self.mlp_ratio}", "use one in (0, 64]")
        heads, width = self.num_heads, self.width
        require(heads is None or heads >= 1, f"a decoder with {heads} heads", "use at least 1")
        require(width is None or (width > 0 and width % 4 == 0), f"a decoder width of {width}", "use a multiple of 4")

    def num_visible(self, masking: Masking, grid: Grid) -> int:
        """The number of patches that the encoder sees.

        Raises:
            UsageError: it is not the same for every mask.
        """
        require(
            masking.constant,
            f"{type(masking).__name__} masks differ in size; an encoder of visible patches needs equal ones",
            "use --masking random or blockwise, or --decoder linear",
        )
        return grid[0] * grid[1] - masking.count(grid)


class CrossAttentionBlock(nn.Module):
    """Pre-norm: x + attn(norm(x), memory), then x + mlp(norm(x)); no attention among the queries."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = CrossAttentionLayer(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Float[Tensor, "B K W"], memory: Float[Tensor, "B S W"]) -> Float[Tensor, "B K W"]:
        x = x + self.attn(self.norm1(x), memory)
        return x + self.mlp(self.norm2(x))


class CrossAttentionLayer(nn.Module):
    """Multi-head attention of queries to a memory."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B K W"], memory: Float[Tensor, "B S W"]) -> Float[Tensor, "B K W"]:
        q, k, v = self._heads(x, memory)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))

    def weights(self, x: Float[Tensor, "B K W"], memory: Float[Tensor, "B S W"]) -> Float[Tensor, "B heads K S"]:
        """How much each query attends to each position of the memory, as `forward` computes it; a row sums to 1."""
        q, k, _ = self._heads(x, memory)
        return attention_weights(q, k)

    def _heads(self, x: Float[Tensor, "B K W"], memory: Float[Tensor, "B S W"]) -> tuple[Tensor, Tensor, Tensor]:
        parts = (self.q(x), *self.kv(memory).chunk(2, dim=-1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return q, k, v


class CrossAttentionDecoder(nn.Module):
    """From the encoder's output at [S] and visible patches to a vector of width W at each masked patch.

    Args:
        grid: rows and columns of the patches of a whole image.
        embed_dim: width D of the encoder.
        num_heads: heads of the encoder.
        num_layers: blocks of the encoder.
    """

    positions: Tensor

    def __init__(
        self, config: CrossAttention, grid: Grid, embed_dim: int, num_heads: int, num_layers: int, init: Init
    ) -> None:
        super().__init__()
        width, heads = config.width or embed_dim, config.num_heads or num_heads
        require(width % heads == 0, f"num_heads {heads} does not divide a decoder width of {width}")
        require(width % 4 == 0, f"a decoder width of {width}", "use a multiple of 4: --decoder.width")
        self.config, self.width, self.mask_token = config, width, nn.Parameter(torch.zeros(1, 1, width))
        self.proj = nn.Linear(embed_dim, width)
        self.memory_norm = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList(CrossAttentionBlock(width, heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        initialise(self, init, width)
        start = torch.zeros(config.depth, num_layers)
        start[:, -1] = 1
        self.layer_weights = nn.Parameter(start) if config.mix_layers else None
        self.register_buffer("positions", sincos_2d(grid, width, amplitude=1.0), persistent=False)

    def forward(self, encoded: Features, visible: Int[Tensor, "B v"], at: Int[Tensor, "B K"]) -> Float[Tensor, "B K W"]:
        """What the queries at the patches `at` have read.

        Args:
            encoded: the encoder's output at `visible`; its `layers` too where these are mixed.
            visible: the patches that the encoder has seen.
        """
        memories = self._memories(encoded, self.positions[visible])
        x = (self.mask_token + self.positions[at]).to(memories[0].dtype)
        for block, memory in zip(self.blocks, memories, strict=True):
            x = block(x, memory)
        return self.norm(x)

    def _memories(self, encoded: Features, positions: Float[Tensor, "B v W"]) -> list[Float[Tensor, "B S W"]]:
        """What each block reads: the projected output of the encoder, told where its patches are; [S] is nowhere."""
        if self.layer_weights is None:
            sources = [torch.cat([encoded.cls[:, None], encoded.patches], dim=1)]
        else:
            layers = torch.stack(encoded.layers)
            weights = self.layer_weights.to(layers.dtype)
            sources = list((weights @ layers.flatten(1)).unflatten(1, layers.shape[1:]))
        where = nn.functional.pad(positions, (0, 0, 1, 0))
        memories = [self.memory_norm(self.proj(source) + where.to(source.dtype)) for source in sources]
        return memories * (len(self.blocks) // len(memories))
