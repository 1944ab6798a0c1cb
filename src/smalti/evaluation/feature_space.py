"""Features of images as a space to look at: the nearest images of each, and a map in two dimensions."""

from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.evaluation.features import Pooling, extract
from smalti.evaluation.probe import leave_one_out_accuracy
from smalti.functional.pca import pca
from smalti.models.vit import VisionTransformer, feature_block

_POOLINGS: tuple[Pooling, ...] = ("mean",)
_NEIGHBOURS_OF_UMAP = 15


class FeatureSpace(NamedTuple):
    """Features of images, and from where they are.

    Attributes:
        block: counted from 1.
        unit: standardised features of length 1, so that products are similarities.
        accuracy: of each image by the votes of the others, where images have labels; else None.
    """

    block: int
    unit: Float[Tensor, "n F"]
    accuracy: float | None


def feature_space(backbone: VisionTransformer, images: InMemoryDataset, compute: Compute) -> FeatureSpace:
    """Mean features of the block that knows labels best; without labels, of the `feature_block`."""
    layers = extract(backbone, images, compute, poolings=_POOLINGS)
    several = len(images.labels.unique()) > 1 and bool((images.labels >= 0).all())
    scores = {at: leave_one_out_accuracy(x, images.labels) for at, x in layers.items()} if several else {}
    deep = list(layers)[feature_block(len(layers)) - 1]
    chosen = max(scores, key=lambda at: scores[at]) if scores else deep
    features = layers[chosen]
    standardised = (features - features.mean(0)) / features.std(0).clamp_min(1e-6)
    return FeatureSpace(chosen[0], F.normalize(standardised, dim=1), scores.get(chosen))


def nearest_others(unit: Float[Tensor, "n F"], queries: Int[Tensor, "m"], count: int) -> Int[Tensor, "m k"]:
    """The `count` images most similar to each of some, without itself; fewer where there are fewer."""
    similarity = unit[queries] @ unit.t()
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    return similarity.topk(min(count, len(unit) - 1), dim=1).indices


def flat_map(unit: Float[Tensor, "n F"]) -> tuple[Float[np.ndarray, "n 2"], str]:
    """Places in a plane, by UMAP where umap-learn is installed, else along two principal components; and which."""
    if len(unit) > _NEIGHBOURS_OF_UMAP:
        with suppress(ImportError):  # there is another package of that name, without it
            from umap import UMAP

            return UMAP(random_state=0, n_jobs=1).fit_transform(unit.numpy()).astype(np.float64), "UMAP"
    return pca(unit, 2).scores.double().numpy(), "principal components"


def on_grid(places: Float[np.ndarray, "n 2"], rows: int, columns: int) -> Int[np.ndarray, "rows columns"]:
    """Which image stands in each cell of a grid over a map: the nearest to its middle of those in it, or -1.

    The map is stretched to ranks halfway, so that crowded parts get more cells.
    """
    n = len(places)
    ranks = np.argsort(np.argsort(places, axis=0, kind="stable"), axis=0, kind="stable") / max(n - 1, 1)
    low, high = places.min(0), places.max(0)
    even = 0.5 * ranks + 0.5 * (places - low) / np.maximum(high - low, 1e-12)
    at = even * np.array([columns, rows])
    cell = np.minimum(at.astype(np.int64), np.array([columns - 1, rows - 1]))
    far = np.square(at - cell - 0.5).sum(1)
    grid = np.full((rows, columns), -1, np.int64)
    for image in np.argsort(-far, kind="stable"):  # the nearest is written last
        grid[rows - 1 - cell[image, 1], cell[image, 0]] = image
    return grid


def top_confusions(predicted: Int[Tensor, "n"], labels: Int[Tensor, "n"]) -> list[tuple[int, int, int]]:
    """True class, predicted class and number of images of every confusion, the most frequent first."""
    wrong = predicted != labels
    pairs, counts = torch.stack([labels[wrong], predicted[wrong]], 1).unique(dim=0, return_counts=True)
    found = [(*pair, count) for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)]
    return sorted(found, key=lambda one: (-one[2], one[:2]))
