"""`smalti check`: inspect a data set before training on it."""

from array import array
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smalti.core.config import require, setting
from smalti.core.errors import DataError
from smalti.core.log import Log, printable
from smalti.data.bands import Header, channels_of, header_of, stored_values
from smalti.data.datasets.concat import ConcatDataset
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.layout import split_in
from smalti.data.datasets.open import ReadOptions, open_source
from smalti.data.duplicates import content_digest, difference_hash, equal_rows, near_rows
from smalti.data.load import Data
from smalti.data.reading import GREY, MIN_RANGE, channels_in, even_sample, map_images
from smalti.data.tiff import count_pages
from smalti.data.values import AskedWindow, is_16_bit, require_channels, require_window

_EDGES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SHOWN = 10
_WIDE = ("I", "F")
"""What the modes of Pillow begin with whose values have more than 8 bits."""
_LISTED = 10_000
"""Unreadable files named in --json; all of them are counted."""


@dataclass(frozen=True)
class Check(ReadOptions):
    """Which images to look at, and how closely."""

    data: str
    """A folder, a list (.txt .lst .csv .tsv), a .zip, tar shards ('shards-{000..009}.tar') or Parquet files, also at an
    address, a Hugging Face data set, the folder of prepared shards, or 'embedded'."""
    channels: int | None = setting(None, "what mean and deviation are of: 1 grey, 3 RGB; none: as the images have")
    side: int = setting(256, "pixels; images are decoded to about this shorter side")
    limit: int | None = setting(None, "images at most, an even sample; none: all")
    distance: int = setting(2, "bits of 64, across and down, in which near copies differ at most")
    window: AskedWindow = setting(None, "stored values that become black and white: MIN MAX, or auto; none: all")

    def __post_init__(self) -> None:
        require_channels(3 if self.channels is None else self.channels)
        require_window(self.window, self.channels or len(self.window or ()) // 2)
        require(self.side >= 16, f"a side of {self.side} pixels", "use at least 16")
        require(0 <= self.distance <= 3, f"a distance of {self.distance} bits", "choose 0 to 3")
        require(self.limit is None or self.limit >= 1, f"a limit of {self.limit} images", "use at least 1")


class ImageFacts(NamedTuple):
    """What is recorded of an image."""

    label: int
    format: str
    mode: str
    width: int
    height: int
    digest: tuple[int, int]
    hash: tuple[int, int]
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    pixels: int
    values: "Values"
    pages: int
    is_grey: bool
    channels: int


class Values(NamedTuple):
    """The type of the stored values of an image, and the least and the greatest of them."""

    type: str
    low: float
    high: float


def main(config: Check) -> dict[str, Any]:
    """Read every image; nothing is written."""
    log = Log()
    source = open_source(config.data, config.channels or 3, log, config, "all")
    source.channels = config.channels or channels_in(source)
    if config.window is not None:
        data = Data.reading(config.data, source.channels, config, config.window)
        source = data.source(config.data, log, "all")
    source.verify(log)
    tally = Tally(source.channels)
    positions = even_sample(len(source), config.limit)
    with map_images(
        lambda position: _look(source, position, config.side, config.pages == "all"), positions, log, "check"
    ) as found:
        for position, seen in found:
            if isinstance(seen, DataError):
                tally.refuse(source.name(position), seen.cause)
            else:
                tally.add(position, seen)
    result = _about(source, config) | tally.result(source, config.distance)
    print(describe(result))
    return result


def _look(source: ImageDataset, position: int, side: int, is_page: bool) -> ImageFacts:
    data = source.read(position)
    sample = source.decoded(position, data, side)
    header = header_of(data)
    flat = sample.image.reshape(-1, sample.image.shape[2]).astype(np.float64) / 255
    one_page = is_page or source.channels not in (1, 3)  # pages may be the channels
    hashed, pages = difference_hash(sample.image), 1 if one_page else count_pages(data)
    is_grey = bool((sample.image == sample.image[..., :1]).all())
    sums = (flat.sum(0), np.square(flat).sum(0), len(flat))
    values = _values(data, source.name(position), header, sample.image)
    channels = channels_of(data, source.name(position))
    return ImageFacts(sample.label, *header, content_digest(data), hashed, *sums, values, pages, is_grey, channels)


def _values(data: bytes, name: str, header: Header, pixels: NDArray[np.uint8]) -> Values:
    """Of 8-bit files, which are most, the least and greatest of the pixels that have been decoded."""
    if header.mode.startswith(_WIDE) or header.format in ("TIFF", "array") or is_16_bit(data):
        stored = stored_values(data, name, pixels.shape[2])
        return Values(str(stored.dtype.newbyteorder("=")), float(stored.min()), float(stored.max()))
    return Values("uint8", float(pixels.min()), float(pixels.max()))


class Tally:
    """All counts so far; takes about 60 bytes for each image."""

    def __init__(self, channels: int) -> None:
        self.formats, self.modes, self.labels = Counter[str](), Counter[str](), Counter[int]()
        self.reasons, self.files = Counter[str](), list[dict[str, str]]()
        self.positions, self.sizes = array("Q"), array("Q")
        self.digests, self.hashes = array("Q"), array("Q")
        self.total, self.squares, self.pixels = np.zeros(channels), np.zeros(channels), 0
        self.grey, self.channels = True, Counter[int]()
        self.values, self.pages = dict[str, tuple[int, float, float]](), Counter[int]()

    @property
    def unreadable(self) -> int:
        """How many images could not be read."""
        return sum(self.reasons.values())

    def refuse(self, name: str, reason: str) -> None:
        """Count an image that cannot be read."""
        self.reasons[reason] += 1
        if len(self.files) < _LISTED:
            self.files.append({"path": name, "reason": reason})

    def add(self, position: int, seen: ImageFacts) -> None:
        """Count an image."""
        self.formats[seen.format] += 1
        self.modes[seen.mode] += 1
        self.labels[seen.label] += 1
        self.positions.append(position)
        self.sizes.extend((seen.width, seen.height))
        self.digests.extend(seen.digest)
        self.hashes.extend(seen.hash)
        self.total += seen.total
        self.squares += seen.squares
        self.pixels += seen.pixels
        self.pages[seen.pages] += 1
        self.grey &= seen.is_grey
        self.channels[seen.channels] += 1
        count, low, high = self.values.get(seen.values.type, (0, np.inf, -np.inf))
        self.values[seen.values.type] = count + 1, min(low, seen.values.low), max(high, seen.values.high)

    def result(self, source: ImageDataset, distance: int) -> dict[str, Any]:
        """What was counted, as plain JSON values."""
        exact, hashes = equal_rows(_pairs(self.digests)), _pairs(self.hashes).copy()
        for group in exact:
            hashes[group[1:]] = 0  # already reported
        near = near_rows(hashes, distance)
        mean = self.total / max(self.pixels, 1)
        std = np.sqrt(np.maximum(self.squares / max(self.pixels, 1) - np.square(mean), 0))
        return {
            "checked": len(self.positions) + self.unreadable,
            "readable": len(self.positions),
            "unreadable": {"count": self.unreadable, "reasons": dict(self.reasons), "files": self.files},
            "formats": dict(self.formats.most_common()),
            "modes": dict(self.modes.most_common()),
            "channels": {str(number): count for number, count in self.channels.most_common()},
            "classes": {name: self.labels[number] for number, name in enumerate(source.classes)},
            "sizes": _sizes(_pairs(self.sizes).astype(np.int64)),
            "values": {
                name: {"images": count, "low": low, "high": high} for name, (count, low, high) in self.values.items()
            },
            "grey": self.grey and self.pixels > 0,
            "pages": sum(number * count for number, count in self.pages.items()),
            "pages_each": max(self.pages) if len(self.pages) == 1 else None,
            "exact_duplicates": self._named(exact, source),
            "near_duplicates": self._named(near, source) | {"distance": distance},
            "mean": mean.tolist() if self.pixels else None,
            "std": std.tolist() if self.pixels else None,
        }

    def _named(self, groups: list[list[int]], source: ImageDataset) -> dict[str, Any]:
        examples = [[source.name(self.positions[place]) for place in group[:_SHOWN]] for group in groups[:_SHOWN]]
        return {"groups": len(groups), "images": sum(map(len, groups)), "examples": examples}


def _pairs(numbers: "array[int]") -> NDArray[np.uint64]:
    return np.frombuffer(numbers, np.uint64).reshape(-1, 2) if numbers else np.zeros((0, 2), np.uint64)


def _about(source: ImageDataset, config: Check) -> dict[str, Any]:
    """What is known without reading the images."""
    about: dict[str, Any] = {"data": config.data, "kind": source.kind, "images": len(source)}
    about |= {"digest": source.digest} if source.digest else {}
    splits = {name: len(part) for name, part in source.parts} if isinstance(source, ConcatDataset) else {}
    return about | {"left_out": source.left_out.as_dict(), "notes": list(source.notes), "splits": splits}


def _read_as(result: dict[str, Any]) -> str:
    """What DATA is taken for, as a plan."""
    splits, classes = result["splits"], len(result["classes"])
    counts = [f"{len(splits)} splits"] if splits else []
    counts += [f"{classes} classes" if classes else "no classes", f"{result['images']} images"]
    parts = [", ".join(counts), *(f"{printable(name)} {count}" for name, count in splits.items())]
    tests = [printable(name) for name in splits if split_in(name) == "test"]
    kept = [f"{name}{'' if '.' in name else '/'} is kept for the end" for name in tests]
    return "; ".join([*parts[:1], *([", ".join(parts[1:])] if splits else []), *kept])


def _sizes(sizes: NDArray[np.int64]) -> dict[str, Any]:
    """Minimum, median and maximum width and height, and how many images have their shorter side in each range."""
    if not len(sizes):
        return {"width": None, "height": None, "shorter_side": {}}
    shorter = sizes.min(1)
    counts = np.bincount(np.searchsorted(_EDGES, shorter, side="right") - 1, minlength=len(_EDGES)).tolist()
    names = [f"{low}-{high - 1}" for low, high in pairwise(_EDGES)] + [f"{_EDGES[-1]}-"]
    spread = [[int(value) for value in np.quantile(sizes[:, axis], (0, 0.5, 1), method="nearest")] for axis in (0, 1)]
    histogram = {name: count for name, count in zip(names, counts, strict=True) if count}
    return {"width": spread[0], "height": spread[1], "shorter_side": histogram}


def describe(result: dict[str, Any]) -> str:
    """The result as a short table; names are escaped so that they cannot control the terminal."""
    sizes, bad = result["sizes"], result["unreadable"]
    part = f", {result['checked']} looked at" if result["checked"] < result["images"] else ""
    rows = [("read as", _read_as(result))]
    rows += [("images", f"{result['images']} ({result['kind']}){part}"), ("unreadable", str(bad["count"]))]
    rows += [("", f"{printable(file['path'])}: {printable(file['reason'])}") for file in bad["files"][:_SHOWN]]
    rows += [("", f"and {bad['count'] - _SHOWN} more, named by --json")] if bad["count"] > _SHOWN else []
    for reason, about in result["left_out"].items():
        kinds = f": {printable(about['suffixes'])}" if "suffixes" in about else ""
        rows.append(("left out", f"{about['count']} {reason}{kinds}, first {printable(about['first'])}"))
    rows += [("note", printable(note)) for note in result["notes"]]
    rows += [("formats", _counts(result["formats"])), ("modes", _counts(result["modes"]))]
    if result["classes"]:
        least, most = min(result["classes"].values()), max(result["classes"].values())
        rows.append(("classes", f"{len(result['classes'])}, of {least} to {most} images"))
    if sizes["width"]:
        (narrow, wide, widest), (low, high, highest) = sizes["width"], sizes["height"]
        rows.append(("size", f"{narrow} to {widest} wide, {low} to {highest} high; medians {wide} and {high}"))
        rows.append(("shorter side", _counts(sizes["shorter_side"])))
    for name in ("exact", "near"):
        found = result[f"{name}_duplicates"]
        rows.append((f"{name} copies", f"{found['images']} images in {found['groups']} groups"))
        rows += [("", " = ".join(map(printable, group))) for group in found["examples"][:3]]
    many = bool(set(result["channels"]) - {"1", "3"})
    rows += [("values", _described(name, about, many)) for name, about in result["values"].items()]
    if many:
        rows += [("channels", _channels(result["channels"]))]
    if result["pages"] > result["readable"]:
        unread, each_has = result["pages"] - result["readable"], result["pages_each"]
        text = f"{unread} after the first of a TIFF are not read; train with --data.pages all"
        stacks = each_has is not None and result["channels"].keys() == {"1"}
        rows.append(("pages", text + (f", or --data.channels {each_has} where they are channels" if stacks else "")))
    if result["grey"] and len(result["mean"]) == 3:
        rows.append(("note", f"every image is grey, its three channels are the same; {GREY}"))
    if result["mean"] is not None:
        rows += [(key, " ".join(f"{value:.4f}" for value in result[key])) for key in ("mean", "std")]
    return "\n".join(f"{title:<14}{text}" for title, text in rows)


def _channels(counts: dict[str, int]) -> str:
    """The channels of images, and the flags to give where all have as many."""
    text = ", ".join(f"{number} in {count} images" for number, count in counts.items())
    if len(counts) > 1:
        return f"{text}; only images of one number can be learned from"
    number = next(iter(counts))
    return f"{text}; train with --data.channels {number} --tokenizer.in-chans {number} (pretrain: --backbone.in-chans)"


def _described(type_name: str, about: dict[str, Any], many: bool) -> str:
    """The values of images of a type, and what to do where they use little of its range, or where that is unknown.

    Args:
        many: they are of channels with ranges of their own, which are measured.
    """
    low, high = about["low"], about["high"]
    window = "--data.window auto" if many else f"--data.window {low:g} {high:g}, or auto"
    text = f"{type_name} from {low:g} to {high:g} in {about['images']} images"
    if type_name.startswith(("float", "int32", "uint32")) or low < 0:
        return f"{text}: black and white are not known; train with {window}"
    share = (high - low) / np.iinfo(type_name).max
    if share < MIN_RANGE:
        return f"{text}, {share:.1%} of what the files can hold; train with {window}"
    return text


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
