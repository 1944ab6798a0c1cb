"""Frozen features of every layer, pooled in every way, from one pass over the images."""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Backbone, Grid
from smalti.data.sources.resident import Resident

POOLINGS = ("cls", "mean", "2x2")
Layer: TypeAlias = tuple[int, str]
"""A block counted from 1, and how its output becomes one vector."""


def pool(tokens: Float[Tensor, "B S D"], pooling: str, grid: Grid) -> Float[Tensor, "B F"]:
    """One vector an image: [S], the mean of the patches, or the means of the four quarters side by side."""
    if pooling == "cls":
        return tokens[:, 0]
    patches = tokens[:, 1:]
    if pooling == "mean":
        return patches.mean(dim=1)
    maps = patches.transpose(1, 2).unflatten(2, grid)
    return F.adaptive_avg_pool2d(maps, 2).flatten(1)


@torch.no_grad()
def extract(
    backbone: Backbone, images: Resident, compute: Compute, batch_size: int = 500
) -> dict[Layer, Float[Tensor, "n F"]]:
    """Features of whole images, without the final norm, in fp32 on the CPU.

    Reference: the last layer of a masked-image model is a poor feature (BEiT, appendix on linear probes), so all layers
    are looked at.
    """
    parts: dict[Layer, list[Tensor]] = {}
    for start in range(0, len(images), batch_size):
        batch = images.images[start : start + batch_size].to(compute.device)
        grid = (batch.shape[-2] // backbone.patch_size, batch.shape[-1] // backbone.patch_size)
        with compute.autocast():
            outputs = backbone.encode(backbone.embed(batch), grid, layers=True).layers
        for number, tokens in enumerate(outputs, start=1):
            for pooling in POOLINGS:
                parts.setdefault((number, pooling), []).append(pool(tokens.float(), pooling, grid).cpu())
    return {layer: torch.cat(pieces) for layer, pieces in parts.items()}
