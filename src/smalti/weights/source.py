"""Weights of another model to start from: what they tell about their backbone, and their conversion to ours."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from smalti.core.contracts import Grid
from smalti.core.errors import CheckpointError, UsageError
from smalti.functional.positions import num_rows
from smalti.models.vit import ViT

_POSITIONS = "backbone.pos_embed"
_TABLE = "relative_position_bias_table"
_HEAD_DIM = 64
_SHARED_TABLE = f"backbone.rel_pos_bias.{_TABLE}"

_DIMENSIONS = {
    "patch_embed.proj.weight": 4,
    "pos_embed": 3,
    _TABLE: 2,
    "qkv.weight": 2,
    "fc1.weight": 2,
    "head.weight": 2,
    "bias": 1,
}
"""By the end of the name: those whose shapes say what the network is."""


@dataclass(frozen=True)
class SourceWeights:
    """Weights under the names of `MaskedImageModel`.

    Attributes:
        where: the file or folder, for messages.
        weights: those of the backbone, and the mask token and the head, if there are any.
        grid: rows and columns of patches; None where they are to be inferred from the weights (`grid_for`).
        num_heads: attention heads; None where they are to be inferred, or unknown (`heads`).
        classifier: its head and its norm of the pooled patches, by the names of `ImageClassifier`; often empty.
        left_out: names in the file that belong to none of these.
    """

    where: str
    weights: Mapping[str, Tensor]
    grid: Grid | None = None
    num_heads: int | None = None
    classifier: Mapping[str, Tensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (*self.weights.items(), *self.classifier.items()):
            wanted = next((count for end, count in _DIMENSIONS.items() if name.endswith(end)), value.ndim)
            if value.ndim != wanted:
                shape = f"the shape {tuple(value.shape)}, and {wanted} dimensions are expected"
                raise CheckpointError(f"{name[:200]} of {self.where} has {shape}")

    def of_size(self, img_size: tuple[int, int]) -> "SourceWeights":
        """The same weights, of images of a height and width in pixels, if their positions fit; else as they are."""
        projection = self.weights.get("backbone.patch_embed.proj.weight")
        if projection is None:
            return self
        grid = img_size[0] // projection.shape[2], img_size[1] // projection.shape[2]
        return replace(self, grid=grid) if self._fits(grid) else self

    def _fits(self, grid: Grid) -> bool:
        """Whether the positions are those of a grid, with or without one of [S]."""
        for name, value in self.weights.items():
            if name == _POSITIONS:
                return math.prod(grid) in (value.shape[1], value.shape[1] - 1)
            if name.endswith(_TABLE):
                return len(value) == num_rows(grid)
        return False

    def without_head(self) -> "SourceWeights":
        """The same weights without the head."""
        return replace(self, weights={n: value for n, value in self.weights.items() if not n.startswith("head.")})

    def grown(self, own: Mapping[str, Tensor], known: tuple[str, ...], outputs: tuple[str, ...]) -> "SourceWeights":
        """The same weights with a head for more outputs: rows of the known ones are kept, others are those of `own`.

        Args:
            own: the weights of the network that is to have them.
            known: the outputs of the head here.
            outputs: those of the network, all of the known ones among them.
        """
        rows, weights = [outputs.index(name) for name in known], dict(self.weights)
        for name, value in self.weights.items():
            mine = own.get(name)
            if name.startswith("head.") and mine is not None and len(value) == len(known) != len(mine) == len(outputs):
                weights[name] = mine.detach().cpu().clone()
                weights[name][rows] = value.to(mine.dtype)
        return replace(self, weights=weights)

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len({name.split(".")[2] for name in self.weights if name.startswith("backbone.blocks.")})

    @property
    def heads(self) -> int | None:
        """The number of attention heads; None where neither the weights nor a config.json tell."""
        tables = [value for name, value in self.weights.items() if name.endswith(_TABLE)]
        return tables[0].shape[1] if self.num_heads is None and tables else self.num_heads

    @property
    def positions(self) -> str:
        """The kind of positions of the backbone, as in `ViT.positions`.

        Raises:
            CheckpointError: there are none, or two kinds.
        """
        found = {"absolute": _POSITIONS, "shared_relative": _SHARED_TABLE}
        kinds = [kind for kind, name in found.items() if name in self.weights]
        kinds += ["block_relative"] if f"backbone.blocks.0.attn.{_TABLE}" in self.weights else []
        if len(kinds) != 1:
            named = " and ".join(kinds) or "none that is known"
            raise CheckpointError(f"the positions of {self.where}: {named}", cause="our backbone has one kind")
        return kinds[0]

    def vit(self, num_heads: int | None = None) -> ViT:
        """The configuration of the backbone, as far as the weights determine it; pixel mean and deviation they do not.

        Args:
            num_heads: attention heads where neither the weights nor a config.json tell; None: 64 channels a head, as in
                every released ViT and BEiT.

        Raises:
            UsageError: the width is no multiple of 64, and `num_heads` is None; or the grid is unknown.
        """
        usual = ViT()
        fields = self._fields(usual) | {"pos_init": "uniform", "drop_path_rate": 0.0}
        width, patch = fields["embed_dim"], fields["patch_size"]
        heads = num_heads if self.heads is None else self.heads
        if heads is None and width % _HEAD_DIM:
            cause = f"weights do not tell it, and {width} channels are no multiple of {_HEAD_DIM}"
            raise UsageError(f"the number of heads of {self.where} is unknown", cause=cause, fix="use --num-heads")
        grid = self.grid_for(usual, "--img-size")
        separate = "backbone.blocks.0.attn.q_bias" in self.weights
        fields |= {"num_heads": heads or width // _HEAD_DIM, "k_bias": not separate}
        return ViT(img_size=(patch * grid[0], patch * grid[1]), **fields)

    def require_fit(self, backbone: ViT) -> None:
        """Check that the weights have the shapes of a backbone.

        Raises:
            UsageError: they differ; the message names both values and the flags to change.
            CheckpointError: the weights have no backbone of our architecture.
        """
        found = self._fields(backbone)
        differing = [name for name, value in found.items() if value != getattr(backbone, name)]
        if differing:
            theirs = ", ".join(f"{name} {found[name]}" for name in differing)
            ours = ", ".join(f"{name} {getattr(backbone, name)}" for name in differing)
            per_block = found["positions"] == "block_relative" and backbone.positions == "shared_relative"
            raise UsageError(
                f"{self.where} has {theirs}, and the backbone has {ours}",
                cause="the tables of its blocks cannot become one that all share" if per_block else "",
                fix="use " + " ".join(f"--backbone.{name.replace('_', '-')} {found[name]}" for name in differing),
            )

    def _fields(self, backbone: ViT) -> dict[str, Any]:
        """Fields of the backbone inferred from the weights; those of `backbone` where the weights do not tell."""
        try:
            projection = self.weights["backbone.patch_embed.proj.weight"]
            hidden = len(self.weights["backbone.blocks.0.mlp.fc1.weight"])
        except KeyError as error:
            raise CheckpointError(f"{self.where} has no {error.args[0]}", cause="it holds no backbone") from None
        width, channels, patch = projection.shape[:3]
        scaled, positions = "backbone.blocks.0.gamma_1" in self.weights, self.positions
        as_wanted = (positions, backbone.positions) == ("shared_relative", "block_relative") or (
            (positions, backbone.positions) == ("block_relative", "shared_relative") and self._equal_tables()
        )
        return {
            "patch_size": patch,
            "in_chans": channels,
            "embed_dim": width,
            "depth": self.depth,
            "num_heads": self.heads or backbone.num_heads,
            "mlp_ratio": backbone.mlp_ratio if hidden == int(width * backbone.mlp_ratio) else hidden / width,
            "positions": backbone.positions if as_wanted else positions,
            "init_values": (backbone.init_values or 0.1) if scaled else None,
        }

    def _equal_tables(self) -> bool:
        """Whether the blocks have the same table, as exports write one that all blocks share."""
        first, *others = (value for name, value in self.weights.items() if name.endswith(_TABLE))
        return all(torch.equal(value, first) for value in others)

    def grid_for(self, backbone: ViT, flag: str = "--backbone.img-size") -> Grid:
        """Rows and columns of patches: `grid` if known, else those of `backbone` if the weights fit, else a square.

        Args:
            flag: what says the size of the images, for the error.

        Raises:
            UsageError: the number of positions does not belong to a square grid.
            CheckpointError: it does not belong to `grid`.
        """
        name, value = next((n, v) for n, v in self.weights.items() if n == _POSITIONS or n.endswith(_TABLE))
        rows = value.shape[1] if name == _POSITIONS else len(value)
        if self.grid is not None:
            if not self._fits(self.grid):
                what = f"{self.where} has no positions for the {self.grid[0]}x{self.grid[1]} patches of its config.json"
                raise CheckpointError(what, cause=f"{name.removeprefix('backbone.')} has {rows} rows")
            return self.grid
        if rows == (1 + math.prod(backbone.grid) if name == _POSITIONS else num_rows(backbone.grid)):
            return backbone.grid
        side = math.isqrt(rows) if name == _POSITIONS else (math.isqrt(max(rows - 3, 0)) + 1) // 2
        if self._fits((side, side)):
            return side, side
        if self._fits(backbone.grid):  # without one of [S]
            return backbone.grid
        raise UsageError(
            f"{self.where} has positions for a grid that is not square",
            cause=f"{name.removeprefix('backbone.')} has {rows} rows",
            fix=f"set {flag} to the height and width it was trained with",
        )

    def as_configured(self, backbone: ViT) -> dict[str, Tensor]:
        """The weights in the variant of `backbone`, at their own grid; the network computes the same function.

        - A bias of keys has no effect: it is dropped where `backbone` has none, and zero where only `backbone` has one.
        - A relative position table that all blocks share is copied for each block where each has its own, and equal
          tables of all blocks become one where they share it.
        - A missing position of [S] is zero.
        """
        result = dict(self.weights)
        grid = self.grid_for(backbone)
        if _POSITIONS in result and result[_POSITIONS].shape[1] == math.prod(grid):
            result[_POSITIONS] = torch.nn.functional.pad(result[_POSITIONS], (0, 0, 1, 0))
        if backbone.positions == "block_relative" and _SHARED_TABLE in result:
            table = result.pop(_SHARED_TABLE)
            result |= {f"backbone.blocks.{block}.attn.{_TABLE}": table for block in range(self.depth)}
        if backbone.positions == "shared_relative" and _SHARED_TABLE not in result:
            for block in range(self.depth):
                result[_SHARED_TABLE] = result.pop(f"backbone.blocks.{block}.attn.{_TABLE}")
        for block in range(self.depth):
            result |= _biases(result, f"backbone.blocks.{block}.attn.", backbone)
        return result


def _biases(weights: dict[str, Tensor], layer: str, backbone: ViT) -> dict[str, Tensor]:
    """The biases of queries, keys and values of a layer, taken out of `weights`; zero where there are none."""
    zero = torch.zeros(backbone.embed_dim)
    q, k, v = (weights.pop(f"{layer}{part}_bias", zero) for part in "qkv")
    joint = weights.pop(f"{layer}qkv.bias", None)
    if joint is not None:
        q, k, v = joint.chunk(3)
    return {f"{layer}qkv.bias": torch.cat([q, k, v])} if backbone.k_bias else {f"{layer}q_bias": q, f"{layer}v_bias": v}
