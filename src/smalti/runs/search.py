"""`smalti search`: the images of a data set that are nearest to others by their features, and near duplicates."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8

from smalti.core.compute import Compute, Device, Precision, choose_compute
from smalti.core.config import require, setting
from smalti.core.errors import DataError, UsageError
from smalti.core.files import require_place
from smalti.core.log import printable
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.open import ReadOptions, open_source
from smalti.data.decode import decode
from smalti.data.reading import channels_in, read_square, square
from smalti.data.token_cache import network_digest
from smalti.evaluation.feature_files import FeatureFile, open_described, recorded_images, recorded_window, text_of
from smalti.evaluation.neighbours import near_pairs, near_pairs_by_graph, nearest
from smalti.report.page import Section
from smalti.report.pictures import false_colours, tile_row
from smalti.runs.network import network_of
from smalti.runs.sections import write_page

_SIDE = 112
"""Pixels of a picture on the page."""


@dataclass(frozen=True)
class Search(ReadOptions):
    """In which features to search, and for what."""

    features: str
    """A file that `smalti embed` has written."""
    images: tuple[str, ...]
    """Image files, of which the nearest images are found."""
    model: str = setting("", "the network that made the features; empty: where it was then")
    near_duplicates: float | None = setting(
        None, "list pairs with at least this similarity, up to 1, in place of IMAGE"
    )
    approximate: bool = setting(False, "find near duplicates by a graph of faiss, which misses a few; for many images")
    count: int = setting(10, "nearest images of each, or pairs shown")
    out: str = setting("", "a page (.html) of the images found; empty: none")
    data: str = setting("", "where the images of the page are; empty: where they were, in the folder of the features")
    precision: Precision = setting("auto", "number format of the network")
    device: Device = setting("auto", "where to compute")

    def __post_init__(self) -> None:
        pairs = self.near_duplicates is not None
        require(bool(self.images) or pairs, "nothing to search for", "give IMAGE, or --near-duplicates 0.95")
        require(not (self.images and pairs), "IMAGE together with near_duplicates", "search for one of them at a time")
        near = self.near_duplicates
        require(pairs or not self.approximate, "approximate without near_duplicates", "the nearest images are exact")
        there = not self.approximate or importlib.util.find_spec("faiss") is not None
        require(there, "approximate needs faiss, which is not installed", "pip install faiss-cpu")
        require(near is None or 0 < near <= 1, f"near_duplicates is {near}", "use a similarity in (0, 1]")
        require(self.count >= 1, f"count is {self.count}", "use at least 1")
        suffix = Path(self.out).suffix.lower()
        require(not self.out or suffix in (".html", ".htm"), f"cannot write '{self.out}'", "use a name in .html")


Line: TypeAlias = list[dict[str, Any]]
"""Images that stand in a line of the page, as in the result."""


def main(config: Search) -> dict[str, Any]:
    """Search, print, and write the page if one is wanted.

    Returns:
        `rows` searched in; of images `nearest`, a list for each, of near duplicates `found`, their number, and the
        first `pairs`. An image is `position` and `key` in its data set, `label` and `similarity`.

    Raises:
        DataError: the file or an image cannot be read.
        UsageError: the network is not the one that made the features.
    """
    if config.out:
        require_place(Path(config.out).expanduser())
    features = open_described(Path(config.features).expanduser())
    compute = choose_compute(config.device, config.precision)
    result, lines = _pairs(config, features, compute) if config.near_duplicates else _nearest(config, features, compute)
    if config.out:
        _write_page(config, features, lines)
        print(f"written: {config.out}")
        result["out"] = config.out
    return result


def _nearest(config: Search, features: FeatureFile, compute: Compute) -> tuple[dict[str, Any], list[Line]]:
    """The nearest images of every given one."""
    model = config.model or features.about["model"]
    network = network_of(model, compute)
    if network_digest(network.backbone) != features.about["weights"]:
        cause = f"another network made them, which then was in {features.about['model']}"
        raise UsageError(f"{features.path} has no features of {model}", cause=cause, fix="give that one as --model")
    queries = network.features(config.images, features.about["layer"], features.about["pooling"])
    if queries.shape[1] != features.width:
        cause = f"it has {features.width} of an image, and its layer and pooling give {queries.shape[1]}"
        raise DataError(
            f"{features.path} has other features than it says", cause=cause, fix="make it with smalti embed"
        )
    similarity, rows = nearest(features, queries, config.count, compute.device)
    lines = [
        [_image(features, row, value) for row, value in zip(*line, strict=True)]
        for line in zip(rows.tolist(), similarity.tolist(), strict=True)
    ]
    for image, line in zip(config.images, lines, strict=True):
        print(f"nearest to {printable(image)}, of {features.count}:")
        for found in line:
            print(f"  {_caption(found)}")
    nearest_of = [{"image": image, "found": line} for image, line in zip(config.images, lines, strict=True)]
    return {"rows": features.count, "nearest": nearest_of}, lines


def _pairs(config: Search, features: FeatureFile, compute: Compute) -> tuple[dict[str, Any], list[Line]]:
    """Pairs of near duplicates: their number, and the first ones, which are printed as they are found."""
    assert config.near_duplicates is not None
    first: list[Line] = []
    number = 0
    if config.approximate:
        found = near_pairs_by_graph(features, config.near_duplicates)
    else:
        found = near_pairs(features, config.near_duplicates, compute.device)
    for pair in found:
        number += 1
        if number <= config.count:
            first.append([_image(features, row, pair.similarity) for row in (pair.first, pair.second)])
            print(f"{pair.similarity:.4f}  {'  '.join(printable(image['key']) for image in first[-1])}")
    more = f", the first {config.count} of them above (--count)" if number > config.count else ""
    print(f"{number} pairs of {features.count} images with a similarity of {config.near_duplicates:g} or more{more}")
    return {"rows": features.count, "found": number, "pairs": first}, first


def _image(features: FeatureFile, number: int, similarity: float) -> dict[str, Any]:
    return features.row(number)._asdict() | {"similarity": similarity}


def _caption(found: dict[str, Any]) -> str:
    label = f"  ({printable(found['label'])})" if found["label"] else ""
    return f"{found['similarity']:.4f}  {printable(found['key'])}{label}"


def _write_page(config: Search, features: FeatureFile, lines: Sequence[Line]) -> None:
    """Write the page, with the images read from the data set once more."""
    window = recorded_window(features)
    source = open_source(config.data or recorded_images(features), 3, options=config, part="all", window=window)
    source.channels = channels_in(source)
    captions = [" · ".join(map(_caption, line)) for line in lines]
    columns: dict[str, list[UInt8[np.ndarray, "H W C"]]] = {}
    names, note = ["one", "other"], f"Pairs with a similarity of at least {config.near_duplicates}, of"
    if config.images:
        columns["image"] = [
            false_colours(square(decode(Path(image).expanduser(), source.channels, window=window), _SIDE))
            for image in config.images
        ]
        captions = [f"{image}: {caption}" for image, caption in zip(config.images, captions, strict=True)]
        names, note = [str(number) for number in range(1, len(lines[0]) + 1)], "The nearest, best first, of"
    for number, name in enumerate(names):
        columns[name] = [_picture(source, line[number]) for line in lines]
    html = tile_row(columns, scale=1, captions=captions)
    subtitle = f"{note} {features.count} images; cosine of standardised features."
    write_page(Path(config.out).expanduser(), features.path.name, subtitle, [Section("Images", html)])


def _picture(source: ImageDataset, image: dict[str, Any]) -> UInt8[np.ndarray, "H W C"]:
    position = image["position"]
    if not 0 <= position < len(source) or text_of(source.key(position)) != image["key"]:
        cause = f"image {position} is not {image['key']} any more"
        raise DataError("the images have changed since their features were computed", cause=cause, fix="see --data")
    return false_colours(read_square(source, position, _SIDE).image)
