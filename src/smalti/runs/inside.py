"""What `smalti show` draws of the inside of a backbone: attention maps, attention rollout, principal components."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.config import require, setting
from smalti.evaluation.attention import block_attentions, rollout
from smalti.evaluation.features import patch_features
from smalti.functional.pca import pca
from smalti.models.vit import VisionTransformer
from smalti.report.heat_maps import component_colours, heat_map
from smalti.report.pictures import to_pixels
from smalti.runs.inpainting_pictures import Columns

Query: TypeAlias = Literal["cls", "mean"] | tuple[int, int]
_CHUNK = 8
"""Images whose attention is computed together: that of a block is heads x S x S for each."""


@dataclass(frozen=True, kw_only=True)
class Inside:
    """Which maps are wanted. All are of whole images, without a mask."""

    attention: tuple[int, ...] = setting((), "blocks whose attention is drawn, counted from 1")
    heads: tuple[int, ...] | Literal["mean", "all"] = setting("mean", "their heads, counted from 1; or mean, or all")
    query: Query = setting("cls", "what attends: [S] (cls), the mean of all patches, or a patch: ROW COLUMN, from 0")
    rollout: bool = setting(False, "attention through all blocks", "Abnar & Zuidema 2020")
    pca: bool = setting(False, "three principal components of the features of patches, as red, green and blue")
    layer: int | None = setting(None, "block of these features; none: as of embed")

    def __post_init__(self) -> None:
        require(
            all(number >= 1 for number in self.attention), f"block {min(self.attention, default=1)}", "count from 1"
        )
        require(self.heads == "mean" or bool(self.attention), "heads without blocks", "add --attention BLOCK...")
        require(self.layer is None or self.pca, "a layer, and nothing is drawn of its features", "add --pca")
        drawn = bool(self.attention) or self.rollout
        require(
            self.query == "cls" or drawn, "a query, and no attention is drawn", "add --attention BLOCK or --rollout"
        )

    @property
    def wanted(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.attention) or self.rollout or self.pca

    def draw(self, backbone: VisionTransformer, images: Tensor, layer: int, compute: Compute) -> tuple[Columns, str]:
        """The maps by column heading, with a description.

        Args:
            images: B C H W, in the size of the backbone.
            layer: the block whose features are taken where none is named.

        Raises:
            UsageError: there is no such block, head or patch.
        """
        layer = layer if self.layer is None else self.layer
        self._require_there(backbone, layer)
        columns, notes = Columns(), list[str]()
        if self.attention or self.rollout:
            columns |= self._attention(backbone, images, compute)
            notes.append(f"Attention is that of {self._who}, each map from nothing to its own greatest value.")
        if self.pca:
            rows, places = backbone.config.grid
            features = patch_features(backbone, images, compute, layer)
            found = pca(features.flatten(0, 1), 3)
            scores = found.scores.view(len(images), rows, places, -1).numpy()
            columns["PCA"] = component_colours(scores, *backbone.config.img_size)
            share = float(found.shares.sum())
            notes.append(
                f"PCA: the first three principal components ({share:.0%} of the variance) of the features that block"
                f" {layer} has of all these patches, as red, green and blue."
            )
        return columns, " ".join(notes)

    @property
    def _who(self) -> str:
        if isinstance(self.query, tuple):
            return f"the patch in row {self.query[0]}, column {self.query[1]}"
        return "[S]" if self.query == "cls" else "all patches, on average"

    def _attention(self, backbone: VisionTransformer, images: Tensor, compute: Compute) -> Columns:
        """A column for each block and head, and one for the rollout."""
        parts = [self._maps(backbone, part, compute) for part in images.split(_CHUNK)]
        maps = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        pictures = to_pixels(images)
        return {
            name: heat_map(found.unflatten(1, backbone.config.grid).numpy(), None, "inferno", pictures)
            for name, found in maps.items()
        }

    def _maps(self, backbone: VisionTransformer, images: Tensor, compute: Compute) -> dict[str, Float[Tensor, "B N"]]:
        found, means = dict[str, Tensor](), list[Tensor]()
        for number, weights in enumerate(block_attentions(backbone, images, compute), start=1):
            means.append(weights.mean(1, keepdim=True))
            if number in self.attention:
                of_heads = means[-1] if self.heads == "mean" else weights
                for head in self._heads(of_heads.shape[1]):
                    name = f"attention, block {number}" if self.heads == "mean" else f"block {number}, head {head}"
                    found[name] = self._asked(of_heads[:, head - 1], backbone)
        if self.rollout:
            found["rollout"] = self._asked(rollout(means), backbone)
        return found

    def _heads(self, count: int) -> tuple[int, ...]:
        return self.heads if isinstance(self.heads, tuple) else tuple(range(1, count + 1))

    def _asked(self, weights: Float[Tensor, "B S S"], backbone: VisionTransformer) -> Float[Tensor, "B N"]:
        """What the query gives each patch."""
        if self.query == "mean":
            return weights[:, 1:, 1:].mean(1)
        row = 0
        if isinstance(self.query, tuple):
            row = 1 + self.query[0] * backbone.config.grid[1] + self.query[1]
        return weights[:, row, 1:]

    def _require_there(self, backbone: VisionTransformer, layer: int) -> None:
        config = backbone.config
        for number in (*self.attention, layer):
            require(1 <= number <= config.depth, f"block {number} of {config.depth}", f"use 1 to {config.depth}")
        for head in self.heads if isinstance(self.heads, tuple) else ():
            require(1 <= head <= config.num_heads, f"head {head} of {config.num_heads}", f"use 1 to {config.num_heads}")
        if isinstance(self.query, tuple):
            inside = all(0 <= place < side for place, side in zip(self.query, config.grid, strict=True))
            rows, columns = config.grid
            require(inside, f"no patch {self.query} in {rows} x {columns}", f"use 0 0 to {rows - 1} {columns - 1}")
