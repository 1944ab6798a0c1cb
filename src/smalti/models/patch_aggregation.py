"""Patch aggregation of BEiT v2: a second, shallow prediction that has to go through [S].

    [S] of the last block, patches of block l -> some Transformer blocks -> the norm and the head of the network

The patches of block l know less than those of the last one, so the shallow prediction is only good where [S] tells what
is missing: [S] learns to sum up the image. It is for training alone, and its weights fall away.

Reference: Peng et al. 2022 (BEiT v2), patch aggregation; released code, modeling_pretrain.py, `cls_pt_layers`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from smalti.core.config import require, setting
from smalti.core.contracts import Features
from smalti.models.layers import drop_path_keep, initialise
from smalti.models.vit import VisionTransformer, ViT, blocks_of


@dataclass(frozen=True)
class PatchAggregation:
    """Configuration of the shallow prediction; none by default."""

    depth: int = setting(0, "blocks that predict from [S] and patches of a lower block; 0: none", "BEiT v2: 2")
    layer: int | None = setting(
        None, "that block, counted from 1; none: three quarters up", "BEiT v2: 9 of 12, 21 of 24"
    )

    def __post_init__(self) -> None:
        require(self.depth >= 0, f"a patch aggregation of {self.depth} blocks", "use 0 or more")
        require(self.layer is None or self.layer >= 1, f"layer is {self.layer}", "blocks are counted from 1")

    def layer_of(self, vit: ViT) -> int:
        """The block whose patches are read, counted from 1.

        Raises:
            UsageError: it is none below the last one.
        """
        last = vit.depth - 1
        require(last >= 1, "patch aggregation in a backbone of one block", "use at least 2: --backbone.depth")
        layer = min(math.ceil(0.75 * vit.depth), last) if self.layer is None else self.layer
        require(layer <= last, f"patches of block {layer} of {vit.depth} are to be aggregated", f"use 1 to {last}")
        return layer


class AggregatingBlocks(nn.Module):
    """The blocks of the shallow prediction, like those of the backbone that come after block l."""

    def __init__(self, config: PatchAggregation, vit: ViT) -> None:
        super().__init__()
        self.config, self.layer = config, config.layer_of(vit)
        self.blocks = blocks_of(vit, config.depth)
        initialise(self, vit.init, vit.embed_dim, below=self.layer)

    def forward(
        self,
        encoded: Features,
        backbone: VisionTransformer,
        key: Int[Tensor, "B"] | None = None,
        at: Int[Tensor, "B K"] | None = None,
        visible: Int[Tensor, "B v"] | None = None,
    ) -> Features:
        """What the blocks make of [S] and patches, with the final norm of the backbone.

        Args:
            encoded: the backbone's output, with that of every block.
            backbone: it has the norm, and the bias of attention where blocks share one.
            key, at, visible: as of `VisionTransformer.encode`.
        """
        x = torch.cat([encoded.layers[-1][:, :1], encoded.layers[self.layer - 1][:, 1:]], dim=1)
        depth, rate = self.config.depth, backbone.config.drop_path_rate
        keep: list[Tensor | None] = [None] * depth
        if key is not None and rate > 0:
            total = max(backbone.config.depth, self.layer + depth)
            keep = list(drop_path_keep(key, total, rate, stream=3)[self.layer : self.layer + depth].to(x.dtype))
        where, wanted = (None if some is None else F.pad(some + 1, (1, 0)) for some in (visible, at))
        bias = backbone.shared_bias(where)
        for block, block_keep in zip(self.blocks, keep, strict=True):
            x = backbone.run_block(block, x, block_keep, bias, wanted if block is self.blocks[-1] else None, where)
        x = backbone.norm(x)
        return Features(x[:, 0], x[:, 1:])
