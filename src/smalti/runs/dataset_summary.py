"""What `smalti check` has found in a data set, as JSON values and as a table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smalti.core.log import printable
from smalti.data.datasets.layout import split_in
from smalti.data.datasets.names import LeftOut
from smalti.data.reading import GREY, MIN_RANGE

_EDGES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Of the ranges of the shorter side, in pixels."""
_SHOWN_FILES, _SHOWN_GROUPS = 10, 3
"""Unreadable files and groups of copies in the table; the JSON has more of them."""


@dataclass(frozen=True)
class Unreadable:
    """How many images cannot be read: in all, by reason, and some of them with their `path` and `reason`."""

    count: int
    reasons: dict[str, int]
    files: list[dict[str, str]]


@dataclass(frozen=True)
class ValueRange:
    """The least and the greatest stored value of so many images of one type."""

    images: int
    low: float
    high: float

    def describe(self, dtype: str, many_channels: bool) -> str:
        """The range, and what to do where the images use little of what the type holds, or where that is unknown.

        Args:
            dtype: NumPy's name of the type.
            many_channels: the images have channels with ranges of their own, which are measured.
        """
        low, high = self.low, self.high
        window = "--data.window auto" if many_channels else f"--data.window {low:g} {high:g}, or auto"
        text = f"{dtype} from {low:g} to {high:g} in {self.images} images"
        if dtype.startswith(("float", "int32", "uint32")) or low < 0:
            return f"{text}: black and white are not known; train with {window}"
        share = (high - low) / np.iinfo(dtype).max
        if share < MIN_RANGE:
            return f"{text}, {share:.1%} of what the files can hold; train with {window}"
        return text


@dataclass(frozen=True)
class Sizes:
    """Minimum, median and maximum of width and height in pixels, and how many images have their shorter side in each
    range. None where no image could be read.
    """

    width: list[int] | None
    height: list[int] | None
    shorter_side: dict[str, int]

    @classmethod
    def of(cls, sizes: NDArray[np.int64]) -> "Sizes":
        """Those of n images, of which `sizes` (n x 2) has width and height."""
        if not len(sizes):
            return cls(None, None, {})
        width, height = (np.quantile(sides, (0, 0.5, 1), method="nearest").astype(int).tolist() for sides in sizes.T)
        ranges = np.searchsorted(_EDGES, sizes.min(1), side="right") - 1
        counts = np.bincount(ranges, minlength=len(_EDGES)).tolist()
        names = [f"{low}-{high - 1}" for low, high in pairwise(_EDGES)] + [f"{_EDGES[-1]}-"]
        return cls(width, height, {name: count for name, count in zip(names, counts, strict=True) if count})


@dataclass(frozen=True)
class Duplicates:
    """Groups of images that are copies of one another, the images in them, and the names of some."""

    groups: int
    images: int
    examples: list[list[str]]


@dataclass(frozen=True)
class DatasetSummary:
    """What is known of a data set.

    Attributes:
        kind: how it is stored.
        digest: of the content, if one was recorded when the data set was written, else empty.
        left_out: files that are not used.
        notes: what a user should know before training, one sentence each.
        splits: images by split; empty without splits.
        checked: images that were looked at.
        formats, modes: images by file format, and by Pillow's mode.
        channels: images by their number of channels.
        classes: images by class; `unlabelled` without any, where there are classes.
        no_labels: why there are no classes; empty where there are.
        values: ranges of stored values by type.
        grey: all channels of every image are the same.
        pages: of all readable images; `pages_each` if all have as many.
        near_distance: bits of 64, across and down, in which `near_duplicates` differ at most.
        mean, std: of each channel, in [0, 1]; None where no image could be read.
    """

    data: str
    kind: str
    images: int
    digest: str
    left_out: LeftOut
    notes: tuple[str, ...]
    splits: dict[str, int]
    checked: int
    readable: int
    unreadable: Unreadable
    formats: dict[str, int]
    modes: dict[str, int]
    channels: dict[str, int]
    classes: dict[str, int]
    unlabelled: int
    no_labels: str
    sizes: Sizes
    values: dict[str, ValueRange]
    grey: bool
    pages: int
    pages_each: int | None
    exact_duplicates: Duplicates
    near_duplicates: Duplicates
    near_distance: int
    mean: list[float] | None
    std: list[float] | None

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values."""
        found = asdict(self)
        found["left_out"], found["notes"] = self.left_out.as_dict(), list(self.notes)
        found["near_duplicates"]["distance"] = found.pop("near_distance")
        return found if self.digest else {name: value for name, value in found.items() if name != "digest"}

    def describe(self) -> str:
        """The summary as a short table; names are escaped so that they cannot control the terminal."""
        part = f", {self.checked} looked at" if self.checked < self.images else ""
        rows = [("read as", self._layout()), ("images", f"{self.images} ({self.kind}){part}")]
        rows += [*self._unused_rows(), ("formats", _counts(self.formats)), ("modes", _counts(self.modes))]
        if self.classes:
            least, most = min(self.classes.values()), max(self.classes.values())
            without = f"; {self.unlabelled} without a label" if self.unlabelled else ""
            rows.append(("classes", f"{len(self.classes)}, of {least} to {most} images{without}"))
        elif self.no_labels:
            rows.append(("no classes", printable(self.no_labels)))
        if self.sizes.width and self.sizes.height:
            (narrow, wide, widest), (low, high, highest) = self.sizes.width, self.sizes.height
            rows.append(("size", f"{narrow} to {widest} wide, {low} to {highest} high; medians {wide} and {high}"))
            rows.append(("shorter side", _counts(self.sizes.shorter_side)))
        for name, found in (("exact copies", self.exact_duplicates), ("near copies", self.near_duplicates)):
            rows.append((name, f"{found.images} images in {found.groups} groups"))
            rows += [("", " = ".join(map(printable, group))) for group in found.examples[:_SHOWN_GROUPS]]
        rows += self._value_rows()
        return "\n".join(f"{title:<14}{text}" for title, text in rows)

    def _layout(self) -> str:
        """What DATA is taken for."""
        splits, classes = self.splits, len(self.classes)
        counts = [f"{len(splits)} splits"] if splits else []
        counts += [f"{classes} classes" if classes else "no classes", f"{self.images} images"]
        parts = [", ".join(counts), *(f"{printable(name)} {count}" for name, count in splits.items())]
        tests = [printable(name) for name in splits if split_in(name) == "test"]
        kept = [f"{name}{'' if '.' in name else '/'} is kept for the end" for name in tests]
        return "; ".join([*parts[:1], *([", ".join(parts[1:])] if splits else []), *kept])

    def _unused_rows(self) -> list[tuple[str, str]]:
        """Images that cannot be read, files that are left out, and notes."""
        bad = self.unreadable
        rows = [("unreadable", str(bad.count))]
        rows += [("", f"{printable(file['path'])}: {printable(file['reason'])}") for file in bad.files[:_SHOWN_FILES]]
        rows += [("", f"and {bad.count - _SHOWN_FILES} more, named by --json")] if bad.count > _SHOWN_FILES else []
        for reason, about in self.left_out.as_dict().items():
            kinds = f": {printable(str(about['suffixes']))}" if "suffixes" in about else ""
            rows.append(("left out", f"{about['count']} {reason}{kinds}, first {printable(str(about['first']))}"))
        return rows + [("note", printable(note)) for note in self.notes]

    def _value_rows(self) -> list[tuple[str, str]]:
        """Stored values, channels and pages, with the flags that they need, and the statistics of the pixels."""
        many_channels = bool(set(self.channels) - {"1", "3"})
        rows = [("values", found.describe(dtype, many_channels)) for dtype, found in self.values.items()]
        if "uint8" in self.values and len(self.values) > 1:
            rows.append(("", "a window that ends above 255 leaves images of 8 bits as they are"))
        if many_channels:
            rows.append(("channels", _channels(self.channels)))
        if self.pages > self.readable:
            text = f"{self.pages - self.readable} after the first of a TIFF are not read; train with --data.pages all"
            stacks = self.pages_each is not None and self.channels.keys() == {"1"}
            or_channels = f", or --data.channels {self.pages_each} where they are channels" if stacks else ""
            rows.append(("pages", text + or_channels))
        if self.mean is None or self.std is None:
            return rows
        if self.grey and len(self.mean) == 3:
            rows.append(("note", f"every image is grey, its three channels are the same; {GREY}"))
        statistics = (("mean", self.mean), ("std", self.std))
        return rows + [(name, " ".join(f"{value:.4f}" for value in values)) for name, values in statistics]


def _channels(counts: Mapping[str, int]) -> str:
    """The channels of images, and the flags to give where all have as many."""
    text = ", ".join(f"{number} in {count} images" for number, count in counts.items())
    if len(counts) > 1:
        return f"{text}; only images of one number can be learned from"
    number = next(iter(counts))
    return f"{text}; train with --data.channels {number} --tokenizer.in-chans {number} (pretrain: --backbone.in-chans)"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
