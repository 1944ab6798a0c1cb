"""Report sections of the features of held-out images: the nearest of some, what is mistaken for what, and a map."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from smalti.core.compute import Compute
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.reading import spread_over_classes
from smalti.evaluation.feature_space import (
    FeatureSpace,
    feature_space,
    flat_map,
    nearest_others,
    on_grid,
    top_confusions,
)
from smalti.evaluation.features import resized
from smalti.models.vit import VisionTransformer
from smalti.report.charts import PALETTE
from smalti.report.page import Section, table
from smalti.report.pictures import scale_of, tile_map, tile_row, to_pixels

Pictures: TypeAlias = UInt8[np.ndarray, "n H W _C"]
_IMAGES, _PATCHES, _MIN_IMAGES = 1000, 60_000, 100
"""Held-out images at most; patches that they may have together, at most; but so many images at least."""
_QUERIES, _NEIGHBOURS, _PAIRS = 6, 6, 8
_ROWS, _COLUMNS, _CELL = 18, 30, 32
"""Cells of the map, and their side in pixels."""


def feature_sections(
    backbone: VisionTransformer, held_out: InMemoryDataset, compute: Compute, channels: tuple[int, ...] | None
) -> list[Section]:
    """What a frozen backbone finds alike among held-out images, of which `channels` are shown.

    There is none where there are fewer than three.
    """
    config = backbone.config
    affordable = max(_MIN_IMAGES, _PATCHES // math.prod(config.grid))
    some = held_out.select(spread_over_classes(held_out.labels, min(_IMAGES, affordable)))
    if len(some) < 3:
        return []
    space = feature_space(backbone, resized(some, config.img_size), compute)
    pixels = to_pixels(some.images, channels)
    return [_neighbours(space, some, pixels), _map(space, some, pixels)]


def _neighbours(space: FeatureSpace, images: InMemoryDataset, pixels: Pictures) -> Section:
    """Some images with those most similar to them; where there are labels, also which are mistaken for which."""
    queries = torch.from_numpy(spread_over_classes(images.labels, _QUERIES))
    found = nearest_others(space.unit, queries, _NEIGHBOURS)
    columns = {"image": pixels[queries.numpy()]} | {
        "nearest" if rank == 0 else str(rank + 1): pixels[column] for rank, column in enumerate(found.t().numpy())
    }
    captions, note, html = [], f"By the mean features of block {space.block}.", ""
    if space.accuracy is not None:
        alike = (images.labels[found] == images.labels[queries][:, None]).sum(1).tolist()
        names = [images.classes[label] for label in images.labels[queries].tolist()]
        captions = [f"{name}: {same} of {found.shape[1]} are too" for name, same in zip(names, alike, strict=True)]
        predicted = images.labels[nearest_others(space.unit, torch.arange(len(images)), 1)[:, 0]]
        html = _mistaken(predicted, images)
        note += " It is the block that knows these labels best, so what is counted here is no figure to report."
    width = scale_of(pixels.shape[2]) if pixels.shape[2] < 64 else 1
    rows = tile_row(columns, scale=max(1, width * 5 // 8), captions=captions, across=2)
    note = f"Held-out images, and those most similar to them among {len(images):,}. {note}"
    return Section("The nearest in feature space", rows + html, note)


def _mistaken(predicted: torch.Tensor, images: InMemoryDataset) -> str:
    """The most frequent confusions of each image with the one nearest to it."""
    totals = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    pairs = top_confusions(predicted, images.labels)[:_PAIRS]
    return confusion_table(pairs, totals, images.classes, "is nearest to one of")


def confusion_table(
    pairs: Sequence[tuple[int, int, int]], totals: Sequence[int], classes: Sequence[str], verb: str
) -> str:
    """Confusions as a table; empty if there are none.

    Args:
        pairs: true class, the class that it is taken for, and how often.
        totals: images of each class.
        verb: what an image of the first does with the second.
    """
    rows = [[classes[true], classes[other], str(n), f"{n / totals[true]:.0%}"] for true, other, n in pairs]
    return table(["an image of", verb, "images", "of its class"], rows) if rows else ""


def _map(space: FeatureSpace, images: InMemoryDataset, pixels: Pictures) -> Section:
    """Images where their features put them, with a frame in the colour of their class."""
    places, how = flat_map(space.unit)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
    grid = on_grid(places, _ROWS, _COLUMNS)
    named = space.accuracy is not None and len(images.classes) <= 2 * len(PALETTE)
    html = tile_map(_small(pixels, grid), images.labels.numpy()[grid] if named else None, grid >= 0, images.classes)
    note = f"Held-out images by {how} of the mean features of block {space.block}: alike is what lies near."
    return Section("A map of the features", html, note)


def _small(pixels: UInt8[np.ndarray, "n H W 3"], grid: np.ndarray) -> UInt8[np.ndarray, "rows columns side side 3"]:
    """The pictures of the cells, of one small size; what is empty is white."""
    cells = np.full((*grid.shape, _CELL, _CELL, 3), 255, np.uint8)
    for place in zip(*np.nonzero(grid >= 0), strict=True):
        small = Image.fromarray(pixels[grid[place]]).resize((_CELL, _CELL), Image.Resampling.BILINEAR)
        cells[place] = np.asarray(small)
    return cells
