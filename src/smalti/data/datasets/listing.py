"""Which images are in a folder: one walk, in an order that is the same everywhere, stored in two arrays."""

import os
import stat
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from smalti.core.log import Log
from smalti.data.decode import EXTENSIONS

FollowLinks: TypeAlias = Literal["inside", "all"]
"""Symbolic links to follow: those that stay inside the folder, or all."""

NO_IMAGE = "no image's extension"
SYSTEM = "hidden or made by the system"
IRREGULAR = "not a regular file"
BROKEN = "broken link"
OUTSIDE = "link out of the folder"
INSIDE = "link to a folder that is read anyway"
SEEN = "folder already read under another name"

_SYSTEM = frozenset(
    {b"thumbs.db", b"desktop.ini", b"@eadir", b"#recycle", b"#snapshot", b"__macosx", b"lost+found"}
    | {b"$recycle.bin", b"system volume information"}
)
_SUFFIXES = frozenset(suffix.encode() for suffix in EXTENSIONS)
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


class Found(NamedTuple):
    """A file below the folder, by its path relative to it; `left_out` says why it is not taken, if it is not."""

    name: bytes
    left_out: str = ""


class _Level(NamedTuple):
    """A folder being walked: what is left of it, last comes first."""

    prefix: bytes
    files: list[bytes]
    folders: list[bytes]


def is_system(name: bytes) -> bool:
    """Whether a file or folder of this name is hidden, or a by-product of an operating system or a NAS."""
    return name.startswith(b".") or name.lower() in _SYSTEM


def has_image_suffix(name: bytes) -> bool:
    """Whether the extension is one of an image."""
    return os.path.splitext(name)[1].lower() in _SUFFIXES


@contextmanager
def count_up(log: Log, title: str) -> Iterator[Callable[[int], None]]:
    """Progress towards an unknown end: call what this gives with the count so far, as often as you like."""
    shown, every = time.monotonic(), 0.2 if log.console.is_terminal else 10.0
    status = log.console.status("") if log.console.is_terminal else None

    def tick(count: int) -> None:
        nonlocal shown
        if count % 256 or time.monotonic() - shown < every:
            return
        shown = time.monotonic()
        if status is None:
            log.say(f"{title}: {count} so far")
        else:
            status.update(Text(f"{title}: {count}"))

    with status or nullcontext():
        yield tick


def walk(root: Path, follow: FollowLinks = "inside") -> Iterator[Found]:
    """Every file below `root`; the images in sorted order, whatever order the file system has.

    Folders are never opened twice (device and inode), so no arrangement of links multiplies the data. Nothing is
    opened but folders: a FIFO called x.jpg cannot hang the walk. Memory: the names of one folder at a time.

    Raises:
        OSError: a folder that cannot be listed.
    """
    top = os.fsencode(root)
    real_top = os.path.realpath(top)
    seen = {_identity(top)}
    levels = [_Level(b"", [], [])]
    yield from _list(top, levels[0], real_top, follow)
    while levels:
        prefix, files, folders = levels[-1]
        if files and (not folders or files[-1] < folders[-1]):
            yield Found(prefix + files.pop())
        elif folders:
            name = prefix + folders.pop()
            path = os.path.join(top, name)
            identity = _identity(path)
            if identity in seen:
                yield Found(name, SEEN)
                continue
            seen.add(identity)
            levels.append(_Level(os.path.join(name, b""), [], []))
            yield from _list(path, levels[-1], real_top, follow)
        else:
            levels.pop()


def _list(path: bytes, level: _Level, real_top: bytes, follow: FollowLinks) -> Iterator[Found]:
    """Fill `level` with a folder's images and folders; yield what is left out."""
    with os.scandir(path) as entries:
        for entry in entries:
            kind = _kind(entry, real_top, follow)
            if kind == "file":
                level.files.append(entry.name)
            elif kind == "folder":
                level.folders.append(entry.name)
            else:
                yield Found(level.prefix + entry.name, kind)
    level.files.sort(reverse=True)
    level.folders.sort(reverse=True)


def _kind(entry: os.DirEntry[bytes], real_top: bytes, follow: FollowLinks) -> str:
    """`file`, `folder`, or why the entry is left out."""
    if is_system(entry.name):
        return SYSTEM
    if entry.is_symlink():
        return _link_kind(entry, real_top, follow)
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    if not has_image_suffix(entry.name):
        return NO_IMAGE
    return "file" if entry.is_file(follow_symlinks=False) else IRREGULAR


def _link_kind(entry: os.DirEntry[bytes], real_top: bytes, follow: FollowLinks) -> str:
    try:
        mode = os.stat(entry.path).st_mode
    except OSError:  # points nowhere, or at itself
        return BROKEN
    target = os.path.realpath(entry.path)
    inside = target == real_top or target.startswith(os.path.join(real_top, b""))
    if stat.S_ISDIR(mode):
        if inside:
            return INSIDE
        return "folder" if follow == "all" else OUTSIDE
    if not has_image_suffix(entry.name):
        return NO_IMAGE
    if not stat.S_ISREG(mode):
        return IRREGULAR
    return "file" if inside or follow == "all" else OUTSIDE


def _identity(path: bytes) -> tuple[int, int]:
    about = os.stat(path)
    return about.st_dev, about.st_ino
