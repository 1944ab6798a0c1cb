"""`smalti check`: inspect a data set before training on it."""

from array import array
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smalti.core.config import require, setting
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.bands import Header, channels_of, header_of, stored_values
from smalti.data.datasets.concat import ConcatDataset
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.labels import NONE
from smalti.data.datasets.open import ReadOptions, open_source
from smalti.data.duplicates import content_digest, difference_hash, equal_rows, near_rows
from smalti.data.load import Data
from smalti.data.reading import channels_in, even_sample, map_images
from smalti.data.tiff import count_pages
from smalti.data.values import AskedWindow, is_16_bit, require_channels, require_window
from smalti.runs.dataset_summary import DatasetSummary, Duplicates, Sizes, Unreadable, ValueRange

_SHOWN = 10
"""Groups of copies, and copies of a group, that are named."""
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
    summary = tally.summary(source, config)
    print(summary.describe())
    return summary.as_dict()


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

    def summary(self, source: ImageDataset, config: Check) -> DatasetSummary:
        """What was counted, with what is known without reading the images."""
        exact, hashes = equal_rows(_pairs(self.digests)), _pairs(self.hashes).copy()
        for group in exact:
            hashes[group[1:]] = 0  # already reported
        near = near_rows(hashes, config.distance)
        mean = self.total / max(self.pixels, 1)
        std = np.sqrt(np.maximum(self.squares / max(self.pixels, 1) - np.square(mean), 0))
        splits = source.parts if isinstance(source, ConcatDataset) else []
        return DatasetSummary(
            data=config.data,
            kind=source.kind,
            images=len(source),
            digest=source.digest,
            left_out=source.left_out,
            notes=source.notes,
            splits={name: len(part) for name, part in splits},
            checked=len(self.positions) + self.unreadable,
            readable=len(self.positions),
            unreadable=Unreadable(self.unreadable, dict(self.reasons), self.files),
            formats=dict(self.formats.most_common()),
            modes=dict(self.modes.most_common()),
            channels={str(number): count for number, count in self.channels.most_common()},
            classes={name: self.labels[number] for number, name in enumerate(source.classes)},
            unlabelled=self.labels[NONE],
            no_labels="" if source.classes else source.no_labels,
            sizes=Sizes.of(_pairs(self.sizes).astype(np.int64)),
            values={name: ValueRange(*found) for name, found in self.values.items()},
            grey=self.grey and self.pixels > 0,
            pages=sum(number * count for number, count in self.pages.items()),
            pages_each=max(self.pages) if len(self.pages) == 1 else None,
            exact_duplicates=self._named(exact, source),
            near_duplicates=self._named(near, source),
            near_distance=config.distance,
            mean=mean.tolist() if self.pixels else None,
            std=std.tolist() if self.pixels else None,
        )

    def _named(self, groups: list[list[int]], source: ImageDataset) -> Duplicates:
        examples = [[source.name(self.positions[place]) for place in group[:_SHOWN]] for group in groups[:_SHOWN]]
        return Duplicates(len(groups), sum(map(len, groups)), examples)


def _pairs(numbers: "array[int]") -> NDArray[np.uint64]:
    return np.frombuffer(numbers, np.uint64).reshape(-1, 2) if numbers else np.zeros((0, 2), np.uint64)
