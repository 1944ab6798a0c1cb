"""Memory-efficient names of millions of images; tests for image file names; counts of skipped files."""

import os
from array import array
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from smalti.data.formats import ARRAYS, EXTENSIONS

NO_IMAGE = "no image's extension"
SYSTEM = "hidden or made by the system"
_SYSTEM = frozenset(
    {b"thumbs.db", b"desktop.ini", b"@eadir", b"#recycle", b"#snapshot", b"__macosx", b"lost+found"}
    | {b"$recycle.bin", b"system volume information"}
)
_SUFFIXES = frozenset(suffix.encode() for suffix in EXTENSIONS)
_ARRAYS = frozenset(suffix.encode() for suffix in ARRAYS)
_SHOWN_SUFFIXES = 5
_MAX_SUFFIXES = 1000
"""The most suffixes counted separately: numbered files (`scan.0001`, `scan.0002`) each have another one."""


class PackedNames:
    """Byte strings, concatenated in `joined`, and the offsets at which each ends, uint64: 8 bytes more for each."""

    def __init__(self, joined: bytes | bytearray | memoryview, ends: NDArray[np.uint64]) -> None:
        self.joined, self.ends = joined, ends

    def __reduce__(self) -> tuple[type["PackedNames"], tuple[bytes, NDArray[np.uint64]]]:
        return PackedNames, (bytes(self.joined), self.ends)  # a memoryview cannot be sent to another process

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        start = int(self.ends[index - 1]) if index else 0
        return bytes(self.joined[start : int(self.ends[index])])


class PackedNamesBuilder:
    """Collects `PackedNames` one by one."""

    def __init__(self) -> None:
        self.joined, self.ends = bytearray(), array("Q")

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, name: bytes) -> None:
        self.joined += name
        self.ends.append(len(self.joined))

    def build(self) -> PackedNames:
        """The collected names, without a copy."""
        return PackedNames(self.joined, np.frombuffer(self.ends, np.uint64))


class LeftOut:
    """Counts the files that were found and skipped, by reason, with the alphabetically first name for each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.suffixes: Counter[str] = Counter()

    def add(self, reason: str, name: bytes, count: int = 1) -> None:
        """Count one skipped file, or `count` of them of which `name` is the first."""
        text = os.fsdecode(name)
        self.counts[reason] += count
        self.first[reason] = min(self.first.get(reason, text), text)
        if reason == NO_IMAGE:
            suffix = os.path.splitext(text)[1].lower()
            known = suffix in self.suffixes or len(self.suffixes) < _MAX_SUFFIXES
            self.suffixes[suffix if known else "other"] += count

    def merge(self, other: "LeftOut", prefix: str = "") -> None:
        """Add the counts of another `LeftOut`, with `prefix` put before its names."""
        for reason, count in other.counts.items():
            name = prefix + other.first[reason]
            self.counts[reason] += count
            self.first[reason] = min(self.first.get(reason, name), name)
        self.suffixes.update(other.suffixes)

    def as_dict(self) -> dict[str, dict[str, int | str]]:
        """The counts and first names by reason, for JSON; of files that are no images also their extensions."""
        found: dict[str, dict[str, int | str]] = {
            reason: {"count": count, "first": self.first[reason]} for reason, count in sorted(self.counts.items())
        }
        if NO_IMAGE in found:
            found[NO_IMAGE]["suffixes"] = self.suffix_line()
        return found

    def suffix_line(self) -> str:
        """The most frequent extensions of files that are not images, as `3 .txt, 1 without extension`."""
        common = self.suffixes.most_common(_SHOWN_SUFFIXES)
        shown = [f"{count} {suffix or 'without extension'}" for suffix, count in common]
        others = self.suffixes.total() - sum(count for _, count in common)
        return ", ".join([*shown, *([f"{others} others"] if others else [])])

    def __str__(self) -> str:
        kinds = {NO_IMAGE: f"{self.suffix_line()}; "}
        counts = sorted(self.counts.items())
        return ", ".join(f"{n} {reason} ({kinds.get(reason, '')}first {self.first[reason]})" for reason, n in counts)


def is_system(name: bytes) -> bool:
    """Whether a file or folder of this name is hidden, or made by an operating system or a NAS."""
    return name.startswith(b".") or name.lower() in _SYSTEM


def has_image_suffix(name: bytes) -> bool:
    """Whether the name has the extension of an image file."""
    return os.path.splitext(name)[1].lower() in _SUFFIXES


def may_be_image(name: bytes) -> bool:
    """Whether the name has the extension of an image file, or of an array."""
    return has_image_suffix(name) or has_array_suffix(name)


def has_array_suffix(name: bytes) -> bool:
    """Whether the name has the extension of an array, which is an image where there are no others."""
    return os.path.splitext(name)[1].lower() in _ARRAYS
