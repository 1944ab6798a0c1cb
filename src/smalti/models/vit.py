"""The backbone: a standard vision Transformer (ViT) that turns patches into features; its usual sizes.

Each size is the paper's variant, with absolute positions and no LayerScale; `released` turns it into that of the
released code. The smaller ones are initialised differently, since the paper's range of weights suits width 768.
"""

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smalti.core.config import require, setting
from smalti.core.contracts import Features, Grid
from smalti.functional.positions import bias_between, sincos_2d
from smalti.models.layers import Block, Init, PatchEmbed, RelativePositionBias, drop_path_keep, initialise, seeded


@dataclass(frozen=True)
class ViT:
    """Configuration of the backbone. The defaults are BEiT-B/16 as in the paper."""

    img_size: tuple[int, int] = setting((224, 224), "pixels: height, width", "BEiT §2.5")
    patch_size: int = setting(16, "pixels: the side of a patch", "BEiT §2.1.1")
    in_chans: int = setting(3, "channels of an image")
    embed_dim: int = setting(768, "channels of a token", "BEiT §2.5")
    depth: int = setting(12, "blocks", "BEiT §2.5")
    num_heads: int = setting(12, "heads of attention", "BEiT §2.5")
    mlp_ratio: float = setting(4.0, "hidden / embed_dim", "BEiT §2.5")
    drop_path_rate: float = setting(0.1, "probability at the last block", "BEiT §2.5")
    positions: Literal["absolute", "shared_relative", "block_relative"] = setting(
        "absolute", "a vector a patch, or a bias of attention by offset: for all blocks, or one each", "BEiT §2.2"
    )
    init_values: float | None = setting(None, "start of LayerScale; none: without (the release: 0.1, large 1e-5)")
    k_bias: bool = setting(True, "a bias of queries, keys and values; without, keys have none, as in the release")
    grad_checkpointing: bool = setting(False, "keep the input of each block and compute the rest again: less memory")
    init: Init = setting("uniform", "how weights are drawn", "BEiT §2.5: uniform in [-0.02, 0.02]")
    pos_init: Literal["uniform", "sincos"] = setting("uniform", "start of the learned positions", "BEiT §2.5")
    pos_amplitude: float = setting(0.1, "of the sines that positions start as, with sincos", "MAE: 1")
    mean: tuple[float, ...] = setting((0.5,), "pixel mean, a value a channel or one for all")
    std: tuple[float, ...] = setting((0.5,), "pixel standard deviation, likewise")

    def __post_init__(self) -> None:
        for name in ("patch_size", "in_chans", "embed_dim", "num_heads"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}", "use at least 1")
        require(self.mlp_ratio > 0, f"mlp_ratio is {self.mlp_ratio}", "use a positive one")
        for side in self.img_size:
            require(
                side > 0 and side % self.patch_size == 0,
                f"patch_size {self.patch_size} does not divide img_size {self.img_size[0]}x{self.img_size[1]}",
                f"use an image size that is a multiple of {self.patch_size}",
            )
        require(self.grid[0] * self.grid[1] >= 2, "an image of a single patch", "use a larger image or a smaller patch")
        require(
            self.embed_dim % self.num_heads == 0,
            f"num_heads {self.num_heads} does not divide embed_dim {self.embed_dim}",
        )
        require(
            self.pos_init != "sincos" or self.embed_dim % 4 == 0,
            f"pos_init sincos with embed_dim {self.embed_dim}",
            "use a multiple of 4",
        )
        require(self.pos_amplitude > 0, f"pos_amplitude is {self.pos_amplitude}", "use a positive one")
        require(
            self.pos_init == "uniform" or self.positions == "absolute",
            f"pos_init {self.pos_init} with positions {self.positions}",
            "only absolute positions have a start to choose",
        )
        require(
            self.init_values is None or self.init_values > 0,
            f"init_values {self.init_values}",
            "use a positive number, or none for no LayerScale",
        )
        require(self.depth >= 1, f"depth {self.depth}", "use at least one block")
        require(0 <= self.drop_path_rate < 1, f"drop_path_rate {self.drop_path_rate}", "choose one in [0, 1)")
        for name in ("mean", "std"):
            require(len(getattr(self, name)) in (1, self.in_chans), f"{name} needs 1 or {self.in_chans} values")
        require(min(self.std) > 0, f"std is {self.std}", "pixels are divided by it: use positive numbers")

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    def build(self, seed: int = 0) -> "VisionTransformer":
        """A network with random weights, which are a function of the seed."""
        return seeded(seed, lambda: VisionTransformer(self))


class VisionTransformer(nn.Module):
    """Images to features, by `embed` and `encode`. Masked image modeling masks patches in between."""

    def __init__(self, config: ViT) -> None:
        super().__init__()
        self.config = config
        self.patch_size, self.embed_dim = config.patch_size, config.embed_dim
        length = 1 + config.grid[0] * config.grid[1]
        absolute, shared = config.positions == "absolute", config.positions == "shared_relative"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, length, config.embed_dim)) if absolute else None
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, config.embed_dim, config.mean, config.std)
        self.rel_pos_bias = RelativePositionBias(config.grid, config.num_heads) if shared else None
        self.blocks = blocks_of(config, config.depth)
        self.norm: nn.Module = nn.LayerNorm(config.embed_dim, eps=1e-6)
        initialise(self, config.init, config.embed_dim)
        if self.pos_embed is not None and config.pos_init == "sincos":
            self.pos_embed.data[0, 1:] = sincos_2d(config.grid, config.embed_dim, config.pos_amplitude)

    def embed(self, images: Tensor) -> Float[Tensor, "B N D"]:
        """Patch embeddings.

        Args:
            images: B C H W, uint8 or float in [0, 1].

        Raises:
            UsageError: they are not of the configured size.
        """
        given, size = "x".join(map(str, images.shape[1:])), self.config.img_size
        require(
            tuple(images.shape[1:]) == (self.config.in_chans, *size),
            f"images of {given}, and the network takes {self.config.in_chans}x{size[0]}x{size[1]}",
            "resize them: smalti.load(MODEL).preprocess does; or train with --backbone.img-size",
        )
        return self.patch_embed(as_unit_range(images))

    def encode(
        self,
        tokens: Float[Tensor, "B N D"],
        *,
        layers: bool = False,
        key: Int[Tensor, "B"] | None = None,
        at: Int[Tensor, "B K"] | None = None,
        visible: Int[Tensor, "B N"] | None = None,
        until: int | None = None,
    ) -> Features:
        """Prepend [S], add absolute positions if there are any, and run the blocks.

        Args:
            tokens: patch embeddings, in which masked patches have been replaced by the mask token e_[M].
            layers: also return the output of every block.
            key: one key per sample, of which stochastic depth is a function; None keeps every branch.
            at: positions in [0, N) of the patches whose features are needed; None for all. For other patches the last
                block computes keys and values only, which does not change the result.
            visible: positions in the grid of the patches in `tokens`; None for all of them. Not together with `at`.
            until: the last block to run, counted from 1; None for all.
        """
        x = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        where = None if visible is None else F.pad(visible + 1, (1, 0))  # [S] comes first
        if self.pos_embed is not None:
            x = x + (self.pos_embed if where is None else F.embedding(where, self.pos_embed[0]))
        x = _residual_dtype(x, self.training)
        depth, rate = self.config.depth, self.config.drop_path_rate
        keep = [None] * depth if key is None or rate == 0 else drop_path_keep(key, depth, rate).to(x.dtype)
        bias = self.shared_bias(where)
        wanted = None if at is None else F.pad(at + 1, (1, 0))
        outputs = []
        blocks = list(self.blocks)[:until]
        for block, block_keep in zip(blocks, keep[:until], strict=True):
            x = self.run_block(block, x, block_keep, bias, wanted if block is blocks[-1] else None, where)
            outputs.append(x)
        x = self.norm(x)
        return Features(x[:, 0], x[:, 1:], tuple(outputs) if layers else ())

    def shared_bias(
        self, where: Int[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "heads S S"] | Float[Tensor, "B heads S S"] | None:
        """The bias of attention that all blocks share, between the positions `where` (default: all); often none."""
        if self.rel_pos_bias is None:
            return None
        bias = self.rel_pos_bias()
        return bias if where is None else bias_between(bias, where)

    def run_block(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        """Run a block; with `grad_checkpointing` its activations are recomputed in the backward pass."""
        if not (self.config.grad_checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)

    def forward(self, images: Tensor) -> Features:
        """Features of images that are not masked; see `embed`."""
        return self.encode(self.embed(images))


def _residual_dtype(x: Tensor, training: bool) -> Tensor:
    """The residual stream in autocast's number format when training on a CPU, where memory bandwidth limits a step.

    In evaluation it stays float32, as on GPUs, where normalisation returns float32 anyway.
    """
    if training and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return x.to(torch.get_autocast_dtype("cpu"))
    return x


def blocks_of(config: ViT, count: int) -> nn.ModuleList:
    """`count` Transformer blocks as a network of this configuration has them, not yet initialised."""
    return nn.ModuleList(
        Block(
            config.embed_dim,
            config.num_heads,
            config.mlp_ratio,
            init_values=config.init_values,
            k_bias=config.k_bias,
            grid=config.grid if config.positions == "block_relative" else None,
        )
        for _ in range(count)
    )


def feature_block(depth: int) -> int:
    """The block, counted from 1, whose features are used where none is named and labels cannot tell: two thirds up.

    The last blocks of a masked image model turn what is in a patch into what was to be predicted there, and the first
    ones have seen little but the patch. Where it is not so, callers take the last block: of a fine-tuned network, of
    one that was cut after a block, and in `smalti embed` of the encoder of a decoder, which predicts nothing itself.
    """
    return -(-2 * depth // 3)


def first_blocks(backbone: VisionTransformer, depth: int) -> VisionTransformer:
    """A copy of a network that ends after its first `depth` blocks; it has the final norm of the whole one."""
    shorter = copy.deepcopy(backbone)
    shorter.config, shorter.blocks = replace(backbone.config, depth=depth), shorter.blocks[:depth]
    return shorter


def as_unit_range(images: Tensor) -> Tensor:
    """Images as float in [0, 1]: uint8 is divided by 255, float is returned unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def nano(img_size: tuple[int, int] = (28, 28), patch_size: int = 4) -> ViT:
    """Width 64, 4 blocks: 0.2 M parameters, minutes on a CPU."""
    return ViT(
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=64,
        depth=4,
        num_heads=2,
        drop_path_rate=0.0,
        init="xavier",
        pos_init="sincos",
    )


def tiny(img_size: tuple[int, int] = (224, 224), patch_size: int = 16) -> ViT:
    """Width 192, 12 blocks: 5.5 M parameters."""
    return ViT(img_size=img_size, patch_size=patch_size, embed_dim=192, num_heads=3, init="width")


def small(img_size: tuple[int, int] = (224, 224), patch_size: int = 16) -> ViT:
    """Width 384, 12 blocks: 21.7 M parameters."""
    return ViT(img_size=img_size, patch_size=patch_size, embed_dim=384, num_heads=6, init="width")


def base(img_size: tuple[int, int] = (224, 224), patch_size: int = 16) -> ViT:
    """Width 768, 12 blocks: BEiT-B, 85.8 M parameters."""
    return ViT(img_size=img_size, patch_size=patch_size)


def large(img_size: tuple[int, int] = (224, 224), patch_size: int = 16) -> ViT:
    """Width 1024, 24 blocks: BEiT-L, 303.3 M parameters."""
    return ViT(img_size=img_size, patch_size=patch_size, embed_dim=1024, depth=24, num_heads=16)


def released(backbone: ViT) -> ViT:
    """The variant of the released code, at the same size.

    It has a relative position bias that all blocks share, LayerScale (0.1, and 1e-5 from 24 blocks on) and no bias of
    keys. Initialisation `uniform` becomes `trunc1`; others are kept.

    Reference: released code, modeling_pretrain.py and its README.
    """
    return replace(
        backbone,
        positions="shared_relative",
        init_values=0.1 if backbone.depth < 24 else 1e-5,
        k_bias=False,
        init="trunc1" if backbone.init == "uniform" else backbone.init,
        pos_init="uniform",
    )
