"""Frozen features of every layer and pooling, from one pass over the images."""

import math
import tempfile
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from smalti.core.compute import Compute, on_device
from smalti.core.contracts import Grid
from smalti.core.errors import OutputError
from smalti.core.machine import usable_memory
from smalti.core.ranks import rank, world_size
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.transforms.augment import resample
from smalti.data.transforms.views import WholeImage
from smalti.distributed.collectives import broadcast_from
from smalti.models.vit import VisionTransformer

Pooling: TypeAlias = Literal["cls", "mean", "both", "2x2"]
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "both", "2x2")
Layer: TypeAlias = tuple[int, str]
"""A block, counted from 1, and a pooling."""
_MAX_TOKENS = 32_000
"""Patches per batch, limited since the outputs of all blocks are in memory together."""
_WRITE = 1 << 24
"""Bytes at a time."""
_RESIZE_CHUNK = 256


def resized(images: InMemoryDataset, size: tuple[int, int]) -> InMemoryDataset:
    """Whole images in another size (height, width), as training resizes them; unchanged where they have it."""
    pixels = images.images
    if pixels.shape[-2:] == size:
        return images
    whole = WholeImage()
    crops = ((part, whole(np.zeros(len(part), np.uint64), *part.shape[-2:])) for part in pixels.split(_RESIZE_CHUNK))
    parts = [(255 * resample(part, crop, size)).round().to(torch.uint8) for part, crop in crops]
    return InMemoryDataset(torch.cat(parts), images.labels, images.classes, images.groups)


def pool(tokens: Float[Tensor, "B S D"], pooling: str, grid: Grid) -> Float[Tensor, "B F"]:
    """One feature vector per image.

    Args:
        tokens: output of a block, [S] first.
        pooling: `cls` is [S], `mean` the mean of the patches, `both` the concatenation of these two, and `2x2` that of
            the means of the four quarters of the image.

    Returns:
        F = D for `cls` and `mean`, 2D for `both`, 4D for `2x2`.
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
    """Features by layer, n x F in fp32. They may be stored in half precision, and `both` is composed when read."""

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
    backbone: VisionTransformer,
    images: InMemoryDataset,
    compute: Compute,
    batch_size: int = 500,
    *,
    poolings: Collection[Pooling] = POOLINGS,
    dtype: torch.dtype = torch.float32,
    shared: bool = False,
) -> LayerFeatures:
    """Features of whole images, without the final norm, on the CPU; in a temporary file if memory is too small.

    Args:
        images: to compute features of, of the size of the backbone (see `resized`).
        batch_size: the most images per batch; fewer where they are large.
        dtype: of the stored features; values beyond the range of float16 are clamped.
        shared: all ranks call this with the same images, and each computes a part of the batches; all get the features
            of one process, bit for bit.

    Reference: BEiT, appendix on linear probes: the last layer of a masked image model is not the best one, so all
    layers are evaluated.
    """
    batch_size = min(batch_size, _most_images(backbone, images.images))
    wanted = dict.fromkeys(part for pooling in poolings for part in _parts(pooling))
    kept: dict[Layer, Tensor] = {}
    starts, ranks = range(0, len(images), batch_size), world_size() if shared else 1
    for start in starts[rank() % ranks :: ranks] or starts[:1]:  # more ranks than batches: the first one again
        batch = images.images[start : start + batch_size]
        outputs, grid = _block_outputs(backbone, batch, compute)
        for number, tokens in enumerate(outputs, start=1):
            for part in wanted:
                pooled = pool(tokens.float(), part, grid)
                if (number, part) not in kept:
                    shape = (len(images), pooled.shape[1])
                    kept[number, part] = _room(shape, dtype, len(outputs) * len(wanted))
                limit = torch.finfo(dtype).max
                kept[number, part][start : start + len(batch)] = pooled.clamp(-limit, limit).to(dtype)
    for features in kept.values():
        for number, start in enumerate(starts if ranks > 1 else ()):
            broadcast_from(number % ranks, features[start : start + batch_size])
    return LayerFeatures(kept, poolings)


@torch.no_grad()
def layer_features(
    backbone: VisionTransformer, images: Tensor, compute: Compute, layer: int, pooling: Pooling
) -> Float[Tensor, "B F"]:
    """The features of one layer as `extract` computes them, float32, on the device: nothing waits for it.

    Args:
        images: B C H W, uint8 or float in [0, 1], of the size of the backbone.
        layer: the block, counted from 1.
    """
    pooled = []
    for batch in images.split(_most_images(backbone, images)):
        outputs, grid = _block_outputs(backbone, batch, compute)
        pooled.append(pool(outputs[layer - 1].float(), pooling, grid))
    return torch.cat(pooled)


@torch.no_grad()
def patch_features(backbone: VisionTransformer, images: Tensor, compute: Compute, layer: int) -> Float[Tensor, "B N D"]:
    """The output of one block at every patch, without the final norm, float32, on the CPU. Arguments as above."""
    parts = images.split(_most_images(backbone, images))
    return torch.cat([_block_outputs(backbone, part, compute)[0][layer - 1][:, 1:].float().cpu() for part in parts])


def _most_images(backbone: VisionTransformer, images: Tensor) -> int:
    """How many images (B C H W) make a batch, at most."""
    return max(1, _MAX_TOKENS * backbone.patch_size**2 // math.prod(images.shape[-2:]))


def _block_outputs(backbone: VisionTransformer, images: Tensor, compute: Compute) -> tuple[tuple[Tensor, ...], Grid]:
    """The output of every block for images (B C H W), B S D each, and the grid of their patches."""
    grid = (images.shape[-2] // backbone.patch_size, images.shape[-1] // backbone.patch_size)
    with compute.autocast():
        return backbone.encode(backbone.embed(on_device(images, compute.device)), layers=True).layers, grid


def _parts(pooling: str) -> tuple[str, ...]:
    """The poolings that are stored for a pooling."""
    return ("cls", "mean") if pooling == "both" else (pooling,)


def _room(shape: tuple[int, int], dtype: torch.dtype, of: int) -> Tensor:
    """An empty tensor, in memory if `of` such tensors fit into a quarter of it, else in an unlinked temporary file."""
    size = math.prod(shape) * dtype.itemsize
    if of * size <= usable_memory() / 4:
        return torch.empty(shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile() as file:
            # allocates the file now, since a full disk could not be reported later
            for start in range(0, size, _WRITE):
                file.write(bytes(min(_WRITE, size - start)))
            file.flush()
            return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=size)).view(dtype).view(shape)
    except OSError as error:
        where, fix = tempfile.gettempdir(), "set TMPDIR to a larger disk, or give fewer images"
        raise OutputError(f"no room for features in {where}", cause=error.strerror or "", fix=fix) from error
