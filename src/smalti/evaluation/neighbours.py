"""The nearest images by their features, and all pairs that are near; the features stay in their file.

Similarity is the cosine of standardised features, as in k-NN of `smalti evaluate`: about 0 for two images that have
nothing in common, 1 for copies. The plain cosine of two such images is 0.5 to 0.7 on average (docs/log.md).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.evaluation.feature_files import FeatureFile
from smalti.evaluation.probe import Scale

_CHUNK = 4096
"""Rows in memory; pairs are searched in products of as many rows and columns."""
_LINKS, _NEAREST = 32, 64
"""Of a graph: edges of each row, and rows that are looked at around one."""


class Pair(NamedTuple):
    """Two rows, the first one before the second, and their similarity."""

    similarity: float
    first: int
    second: int


def scale_of_file(features: FeatureFile) -> Scale:
    """Mean and standard deviation of every feature, each (F,); constant features become zero and not NaN."""
    total = squares = torch.zeros(features.width, dtype=torch.float64)
    for chunk in features.chunks(_CHUNK):
        total = total + chunk.double().sum(0)
    mean = total / features.count
    for chunk in features.chunks(_CHUNK):  # a second pass: the difference of large sums would lose digits
        squares = squares + (chunk.double() - mean).square().sum(0)
    std = (squares / max(features.count - 1, 1)).sqrt().clamp_min(1e-6)
    return mean.float(), std.float()


def nearest(
    features: FeatureFile, queries: Float[Tensor, "m F"], count: int, device: torch.device, scale: Scale | None = None
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """Similarity and row of the `count` rows most similar to each query, or of all if there are fewer; best first.

    Args:
        scale: of `scale_of_file`, where it is known.
    """
    scale = scale_of_file(features) if scale is None else scale
    wanted, start = _unit(queries, scale, device), 0
    best = torch.empty(len(queries), 0, device=device)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    for chunk in features.chunks(_CHUNK):
        found = wanted @ _unit(chunk, scale, device).T
        numbers = torch.arange(start, start + len(chunk), device=device).expand_as(found)
        best, rows = torch.cat([best, found], 1), torch.cat([rows, numbers], 1)
        best, order = best.sort(stable=True, dim=1, descending=True)
        best, rows, start = best[:, :count], rows.gather(1, order)[:, :count], start + len(chunk)
    return best.cpu(), rows.cpu()


def near_pairs(features: FeatureFile, threshold: float, device: torch.device) -> Iterator[Pair]:
    """All pairs of rows with at least this similarity, ordered by chunks of the first row."""
    scale, start = scale_of_file(features), 0
    for chunk in features.chunks(_CHUNK):
        some, other = _unit(chunk, scale, device), start
        for later in features.chunks(_CHUNK, start):
            found = some @ _unit(later, scale, device).T
            if other == start:
                found = found.masked_fill(torch.ones_like(found, dtype=torch.bool).tril(), -torch.inf)
            pairs = (found >= threshold).nonzero()
            values = found[pairs[:, 0], pairs[:, 1]].tolist()
            for (first, second), similarity in zip(pairs.tolist(), values, strict=True):
                yield Pair(similarity, start + first, other + second)
            other += len(later)
        start += len(chunk)


def near_pairs_by_graph(features: FeatureFile, threshold: float) -> Iterator[Pair]:
    """Most of `near_pairs`, in n log n steps, by a navigable small-world graph of faiss (HNSW).

    All features and the graph are in memory. Of an image with more than 64 near duplicates some are missed, and of
    others about one in a hundred.
    """
    import faiss  # an optional package, which takes half a second

    scale, cpu = scale_of_file(features), torch.device("cpu")
    graph = faiss.IndexHNSWFlat(features.width, _LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = graph.hnsw.efSearch = 2 * _NEAREST
    for chunk in features.chunks(_CHUNK):
        graph.add(_unit(chunk, scale, cpu).numpy())
    start, seen = 0, set[tuple[int, int]]()
    for chunk in features.chunks(_CHUNK):
        found, rows = graph.search(_unit(chunk, scale, cpu).numpy(), _NEAREST + 1)
        for place, column in zip(*(found >= threshold).nonzero(), strict=True):
            first, second = sorted((start + int(place), int(rows[place, column])))
            if 0 <= first < second and (first, second) not in seen:
                seen.add((first, second))
                yield Pair(float(found[place, column]), first, second)
        start += len(chunk)


def _unit(features: Float[Tensor, "m F"], scale: Scale, device: torch.device) -> Float[Tensor, "m F"]:
    """Standardised features of length 1."""
    return F.normalize((features - scale[0]) / scale[1], dim=1).to(device)
