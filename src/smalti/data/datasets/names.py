"""Names and labels of a million images in little memory; which names are those of images, and what was left out."""

import os
import re
from array import array
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from smalti.data.decode import EXTENSIONS

NO_IMAGE = "no image's extension"
SYSTEM = "hidden or made by the system"
_SYSTEM = frozenset(
    {b"thumbs.db", b"desktop.ini", b"@eadir", b"#recycle", b"#snapshot", b"__macosx", b"lost+found"}
    | {b"$recycle.bin", b"system volume information"}
)
_SUFFIXES = frozenset(suffix.encode() for suffix in EXTENSIONS)
MAX_CLASSES = 100_000
NONE = -1
"""The label of an image that has none."""

_MOST_SUFFIXES = 1000
"""Numbered files (`scan.0001`, `scan.0002`) have as many suffixes as files; so many are told apart."""


class Names:
    """Many byte strings in one: a million cost their bytes and 8 more each."""

    def __init__(self, joined: bytes | bytearray | memoryview, ends: NDArray[np.uint64]) -> None:
        self.joined, self.ends = joined, ends

    def __reduce__(self) -> tuple[type["Names"], tuple[bytes, NDArray[np.uint64]]]:
        return Names, (bytes(self.joined), self.ends)  # a memoryview cannot be sent to another process

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        start = int(self.ends[index - 1]) if index else 0
        return bytes(self.joined[start : int(self.ends[index])])


class NamesBuilder:
    """Collects `Names` one by one."""

    def __init__(self) -> None:
        self.joined, self.ends = bytearray(), array("Q")

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, name: bytes) -> None:
        """Append one."""
        self.joined += name
        self.ends.append(len(self.joined))

    def build(self) -> Names:
        """What was collected, without a copy."""
        return Names(self.joined, np.frombuffer(self.ends, np.uint64))


class LeftOut:
    """What was found and not taken: how often for each reason, and the first of each by name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.suffixes: Counter[str] = Counter()

    def add(self, reason: str, name: bytes, count: int = 1) -> None:
        """Count one, or as many as `count`, of which `name` is the first."""
        text = os.fsdecode(name)
        self.counts[reason] += count
        self.first[reason] = min(self.first.get(reason, text), text)
        if reason == NO_IMAGE:
            suffix = os.path.splitext(text)[1].lower()
            known = suffix in self.suffixes or len(self.suffixes) < _MOST_SUFFIXES
            self.suffixes[suffix if known else "other"] += count

    def merge(self, other: "LeftOut", prefix: str = "") -> None:
        """Add what another place left out."""
        for reason, count in other.counts.items():
            name = prefix + other.first[reason]
            self.counts[reason] += count
            self.first[reason] = min(self.first.get(reason, name), name)
        self.suffixes.update(other.suffixes)

    def as_dict(self) -> dict[str, dict[str, int | str]]:
        """For JSON."""
        return {reason: {"count": count, "first": self.first[reason]} for reason, count in sorted(self.counts.items())}

    def suffix_line(self) -> str:
        """The commonest kinds of foreign files, as `3 .txt, 1 without extension`."""
        common = self.suffixes.most_common(3)
        return ", ".join(f"{count} {suffix or 'without extension'}" for suffix, count in common)

    def __str__(self) -> str:
        return ", ".join(f"{n} {reason} (first {self.first[reason]})" for reason, n in sorted(self.counts.items()))


class Labels:
    """Collects one label an image. Whole numbers are class numbers; anything else is a class name."""

    def __init__(self) -> None:
        self.ids, self.table = array("i"), dict[str, int]()

    def add(self, text: str) -> None:
        """Append a label.

        Raises:
            ValueError: a number out of range, or more classes than can be; the message says which.
        """
        if re.fullmatch(r"-?[0-9]+", text) and not (len(text) < 10 and 0 <= int(text) < MAX_CLASSES):
            raise ValueError(f"label {text[:20]} is out of range; class numbers are 0 to {MAX_CLASSES - 1}")
        if text not in self.table and len(self.table) == MAX_CLASSES:
            raise ValueError(f"more than {MAX_CLASSES} different labels; is this a column of labels?")
        self.ids.append(self.table.setdefault(text, len(self.table)))

    def add_none(self) -> None:
        """Append an image without a label."""
        self.ids.append(NONE)

    def build(self) -> tuple[NDArray[np.int32], tuple[str, ...]]:
        """A class number for each image, and the classes in order; no classes where any image has no label."""
        ids = np.array(self.ids, np.int32)
        return resolve(ids, tuple(self.table))


def resolve(ids: NDArray[np.int32], names: tuple[str, ...]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Number the classes: a number stands for itself, names are sorted."""
    if not names or bool((ids == NONE).any()):
        return np.full(len(ids), NONE, np.int32), ()
    if all(name.isdecimal() for name in names):
        numbers = np.array([int(name) for name in names], np.int32)
        return numbers[ids], tuple(str(number) for number in range(int(numbers.max()) + 1))
    classes = tuple(sorted(names))
    place = {name: number for number, name in enumerate(classes)}
    return np.array([place[name] for name in names], np.int32)[ids], classes


def is_system(name: bytes) -> bool:
    """Whether a file or folder of this name is hidden, or a by-product of an operating system or a NAS."""
    return name.startswith(b".") or name.lower() in _SYSTEM


def has_image_suffix(name: bytes) -> bool:
    """Whether the extension is one of an image."""
    return os.path.splitext(name)[1].lower() in _SUFFIXES
