"""Semantic segmentation: a backbone, the outputs of some of its blocks as feature maps, and a head over the classes.

The head is linear, or UPerNet on a feature pyramid made of the maps.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.config import require, setting
from smalti.core.contracts import Grid
from smalti.models.layers import seeded
from smalti.models.vit import VisionTransformer, ViT

_POOLED = (1, 2, 3, 6)
"""Rows and columns to which the coarsest map is pooled."""
_IN_A_GROUP = 8
_SHARES = (1 / 3, 1 / 2, 2 / 3, 1)
"""The blocks to read, as shares of the depth: 4, 6, 8 and 12 of 12, and 8, 12, 16 and 24 of 24, as released."""


def level_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of eight channels; one group of all channels where eight does not divide their number."""
    return nn.GroupNorm(1 if channels % _IN_A_GROUP else channels // _IN_A_GROUP, channels)


def _conv(channels: int, width: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the size, norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False), level_norm(width), nn.ReLU()
    )


class FeaturePyramid(nn.Module):
    """Turns four maps of the same resolution into maps of 4, 2, 1 and 1/2 times that resolution.

    Reference: released code, semantic_segmentation/backbone/beit.py: two transposed convolutions with norm and GELU
        between them, one, nothing, and max-pooling.
    Differs: an odd side is rounded up when it is halved.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()

        def double() -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)

        self.levels = nn.ModuleList(
            [
                nn.Sequential(double(), level_norm(dim), nn.GELU(), double()),
                double(),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    def forward(self, maps: list[Float[Tensor, "B D h w"]]) -> list[Float[Tensor, "B D _h _w"]]:
        return [level(feature) for level, feature in zip(self.levels, maps, strict=True)]


class UPerHead(nn.Module):
    """Pyramid pooling of the coarsest map, top-down addition of coarse maps to finer ones, and fusion of all of them.

    Reference: Xiao et al. 2018 (UPerNet), fig. 4; Zhao et al. 2017 (PSPNet), §3.2 for the pooling.
    """

    def __init__(self, dim: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(_conv(dim, width, 1) for _ in _POOLED)
        self.bottleneck = _conv(dim + len(_POOLED) * width, width, 3)
        self.lateral = nn.ModuleList(_conv(dim, width, 1) for _ in range(3))
        self.output = nn.ModuleList(_conv(width, width, 3) for _ in range(3))
        self.merge = _conv(4 * width, width, 3)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, levels: list[Float[Tensor, "B D _h _w"]]) -> Float[Tensor, "B classes h w"]:
        """Logits over the classes at the resolution of the finest map."""
        merged = self._pool(levels[-1])
        outputs = [merged]
        for lateral, output, level in reversed(list(zip(self.lateral, self.output, levels[:-1], strict=True))):
            merged = lateral(level) + _scaled(merged, level)
            outputs.append(output(merged))
        return self.classify(self.merge(torch.cat([_scaled(part, levels[0]) for part in reversed(outputs)], dim=1)))

    def _pool(self, coarse: Float[Tensor, "B D h w"]) -> Float[Tensor, "B width h w"]:
        parts = [
            _scaled(conv(F.adaptive_avg_pool2d(coarse, size)), coarse)
            for conv, size in zip(self.pooled, _POOLED, strict=True)
        ]
        return self.bottleneck(torch.cat([coarse, *parts], dim=1))


def _scaled(part: Float[Tensor, "B C h w"], like: Float[Tensor, "B _C H W"]) -> Float[Tensor, "B C H W"]:
    return F.interpolate(part, like.shape[-2:], mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Linear:
    """A linear head on each patch after a LayerNorm: the semantic segmentation of the features alone."""

    block: int | None = setting(None, "the block whose output is read, counted from 1; none: the last")

    def __post_init__(self) -> None:
        require(self.block is None or self.block >= 1, f"block {self.block}", "count blocks from 1")

    @property
    def auxiliary(self) -> float:
        """Weight of the loss of an auxiliary head; 0, since there is none."""
        return 0.0

    def blocks(self, depth: int) -> tuple[int, ...]:
        """Which blocks are read, counted from 1."""
        return (self.block or depth,)

    def build(self, embed_dim: int, num_classes: int) -> nn.Module:
        """The head, with weights drawn from torch's generator."""
        return LinearHead(embed_dim, num_classes)


@dataclass(frozen=True)
class MultiLevel:
    """A UPerNet head on a feature pyramid of four blocks.

    Reference: released code, semantic_segmentation/: the pyramid in backbone/beit.py, UPerHead with pool scales
        1, 2, 3, 6, an auxiliary FCN head of weight 0.4 on the third level; Xiao et al. 2018 (UPerNet).
    Differs: GroupNorm instead of SyncBN, whose statistics are too noisy with a few images per step; the width is 64
        and not embed_dim; no auxiliary head by default; no dropout before the last convolution.
    """

    width: int = setting(64, "channels of lateral and output convolutions", "released code: embed_dim")
    levels: tuple[int, int, int, int] | None = setting(
        None, "blocks that are read, counted from 1; none: a third, half, two thirds and all of the depth"
    )
    auxiliary: float = setting(0.0, "weight of the loss of a second head, on the third level", "released code: 0.4")

    def __post_init__(self) -> None:
        require(self.width >= 8 and self.width % 8 == 0, f"a width of {self.width}", "use a multiple of 8")
        require(self.auxiliary >= 0, f"an auxiliary weight of {self.auxiliary}", "use 0 or more")
        require(self.levels is None or min(self.levels) >= 1, f"levels {self.levels}", "count blocks from 1")

    def blocks(self, depth: int) -> tuple[int, ...]:
        """Which blocks are read, counted from 1."""
        return self.levels or tuple(math.ceil(share * depth) for share in _SHARES)

    def build(self, embed_dim: int, num_classes: int) -> nn.Module:
        """The head, with weights drawn from torch's generator."""
        return MultiLevelHead(embed_dim, self.width, num_classes, self.auxiliary > 0)


class LinearHead(nn.Module):
    """LayerNorm over channels, then a linear layer on each patch."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.linear = nn.Linear(embed_dim, num_classes)

    def forward(self, maps: list[Float[Tensor, "B D h w"]]) -> list[Float[Tensor, "B classes h w"]]:
        return [self.linear(self.norm(maps[0].permute(0, 2, 3, 1))).permute(0, 3, 1, 2)]


class MultiLevelHead(nn.Module):
    """Feature pyramid, UPerNet head, and an optional auxiliary head: 3 x 3 convolution, norm, ReLU, logits."""

    def __init__(self, embed_dim: int, width: int, num_classes: int, auxiliary: bool) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(embed_dim)
        self.decode = UPerHead(embed_dim, width, num_classes)
        self.auxiliary: nn.Module | None = None
        if auxiliary:
            self.auxiliary = nn.Sequential(
                nn.Conv2d(embed_dim, width, 3, padding=1, bias=False),
                level_norm(width),
                nn.ReLU(),
                nn.Conv2d(width, num_classes, 1),
            )

    def forward(self, maps: list[Float[Tensor, "B D h w"]]) -> list[Float[Tensor, "B classes _h _w"]]:
        levels = self.pyramid(maps)
        scores = [self.decode(levels)]
        return scores if self.auxiliary is None else [*scores, self.auxiliary(levels[2])]


class Segmenter(nn.Module):
    """Logits over the classes at every pixel.

    Blocks are read without the final norm, which is therefore removed. Blocks above those that are read neither run nor
    learn. The logits of the head are interpolated bilinearly to the size of the image.

    Reference: BEiT §3.2; released code, semantic_segmentation/backbone/beit.py.
    """

    def __init__(self, backbone: VisionTransformer, head: nn.Module, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone, self.head, self.blocks_read = backbone, head, blocks
        backbone.norm = nn.Identity()
        backbone.blocks[max(blocks) :].requires_grad_(False)

    def forward(self, images: Tensor, key: Int[Tensor, "B"] | None = None) -> Float[Tensor, "B classes H W"]:
        """The logits of the head, without those of the auxiliary head; arguments as of `all_scores`."""
        return self.all_scores(images, key)[0]

    def all_scores(self, images: Tensor, key: Int[Tensor, "B"] | None = None) -> list[Float[Tensor, "B classes H W"]]:
        """The logits of the head, then those of the auxiliary head where there is one; float32.

        Args:
            images: B C H W, uint8 or float in [0, 1].
            key: one key per sample, of which stochastic depth is a function; None keeps every branch.
        """
        grid = self.backbone.config.grid
        embedded, until = self.backbone.embed(images), max(self.blocks_read)
        layers = self.backbone.encode(embedded, layers=True, key=key, until=until).layers
        maps = [as_map(layers[block - 1], grid) for block in self.blocks_read]
        size = images.shape[-2:]
        return [F.interpolate(scores.float(), size, mode="bilinear", align_corners=False) for scores in self.head(maps)]


def as_map(states: Float[Tensor, "B S D"], grid: Grid) -> Float[Tensor, "B D h w"]:
    """The patches as a feature map, without [S]."""
    return states[:, 1:].transpose(1, 2).unflatten(2, grid)


def build_segmenter(config: ViT, num_classes: int, head: Linear | MultiLevel, seed: int = 0) -> Segmenter:
    """A segmenter with random weights, which are a function of the seed; the head has torch's default initialisation.

    Raises:
        UsageError: the head reads a block that the backbone does not have.
    """
    blocks = head.blocks(config.depth)
    require(
        max(blocks) <= config.depth,
        f"the head reads block {max(blocks)}",
        f"the backbone has {config.depth} blocks, counted from 1",
    )
    backbone = config.build(seed)
    return seeded(seed + 1, lambda: Segmenter(backbone, head.build(config.embed_dim, num_classes), blocks))
