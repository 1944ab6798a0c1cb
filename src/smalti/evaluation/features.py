"""Frozen features of every layer, pooled in every way, from one pass over the images."""

import math
import tempfile
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Backbone, Grid
from smalti.core.errors import OutputError
from smalti.data.datasets.memory import InMemoryDataset
from smalti.data.load import physical_memory

Pooling: TypeAlias = Literal["cls", "mean", "both", "2x2"]
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "both", "2x2")
Layer: TypeAlias = tuple[int, str]
"""A block counted from 1, and how its output becomes one vector."""
_MOST_TOKENS = 32_000
"""Patches that are computed at a time: the outputs of all blocks are in memory together."""
_WRITE = 1 << 24
"""Bytes at a time."""


def pool(tokens: Float[Tensor, "B S D"], pooling: str, grid: Grid) -> Float[Tensor, "B F"]:
    """One vector an image.

    Args:
        pooling: `cls` is [S], `mean` the mean of the patches, `both` these two side by side, and `2x2` the means of the
            four quarters side by side.
    """
    if pooling == "cls":
        return tokens[:, 0]
    patches = tokens[:, 1:]
    if pooling == "mean":
        return patches.mean(dim=1)
    if pooling == "both":
        return torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1)
    maps = patches.transpose(1, 2).unflatten(2, grid)
    return F.adaptive_avg_pool2d(maps, 2).flatten(1)


class LayerFeatures(Mapping[Layer, Tensor]):
    """Features by layer, `n F` in fp32. What is kept may be in half precision, and `both` is made of the other two."""

    def __init__(self, kept: Mapping[Layer, Float[Tensor, "n _"]], poolings: Collection[Pooling]) -> None:
        self.kept = kept
        self.layers = [(n, pooling) for n in dict.fromkeys(number for number, _ in kept) for pooling in poolings]

    def __getitem__(self, layer: Layer) -> Tensor:
        if layer not in self.layers:
            raise KeyError(layer)
        number, pooling = layer
        return torch.cat([self.kept[number, one].float() for one in _parts(pooling)], dim=1)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


@torch.no_grad()
def extract(
    backbone: Backbone,
    images: InMemoryDataset,
    compute: Compute,
    batch_size: int = 500,
    *,
    poolings: Collection[Pooling] = POOLINGS,
    dtype: torch.dtype = torch.float32,
) -> LayerFeatures:
    """Features of whole images, without the final norm, on the CPU; what does not fit into memory lies in a file.

    Args:
        batch_size: images that are computed at a time, at most; of large ones fewer.
        dtype: what they are kept in. In float16, values beyond its range end at its largest.

    Reference: the last layer of a masked-image model is a poor feature (BEiT, appendix on linear probes), so all layers
    are looked at.
    """
    tokens_of_one = math.prod(images.images.shape[-2:]) // backbone.patch_size**2
    batch_size = min(batch_size, max(1, _MOST_TOKENS // tokens_of_one))
    wanted = dict.fromkeys(part for pooling in poolings for part in _parts(pooling))
    kept: dict[Layer, Tensor] = {}
    for start in range(0, len(images), batch_size):
        batch = images.images[start : start + batch_size].to(compute.device)
        grid = (batch.shape[-2] // backbone.patch_size, batch.shape[-1] // backbone.patch_size)
        with compute.autocast():
            outputs = backbone.encode(backbone.embed(batch), grid, layers=True).layers
        for number, tokens in enumerate(outputs, start=1):
            for part in wanted:
                pooled = pool(tokens.float(), part, grid)
                if (number, part) not in kept:
                    shape = (len(images), pooled.shape[1])
                    kept[number, part] = _room(shape, dtype, len(outputs) * len(wanted))
                limit = torch.finfo(dtype).max
                kept[number, part][start : start + len(batch)] = pooled.clamp(-limit, limit).to(dtype)
    return LayerFeatures(kept, poolings)


def _parts(pooling: str) -> tuple[str, ...]:
    """What is kept for a pooling."""
    return ("cls", "mean") if pooling == "both" else (pooling,)


def _room(shape: tuple[int, int], dtype: torch.dtype, of: int) -> Tensor:
    """An empty tensor, `of` of which are wanted: in memory where they fit a quarter of it, else in a nameless file."""
    size = math.prod(shape) * dtype.itemsize
    if of * size <= physical_memory() / 4:
        return torch.empty(shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile() as file:
            for start in range(0, size, _WRITE):  # room is taken now: a full disk could not be reported later
                file.write(bytes(min(_WRITE, size - start)))
            file.flush()
            return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=size)).view(dtype).view(shape)
    except OSError as error:
        where, fix = tempfile.gettempdir(), "set TMPDIR to a larger disk, or give fewer images"
        raise OutputError(f"no room for features in {where}", cause=error.strerror or "", fix=fix) from error
