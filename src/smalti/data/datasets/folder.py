"""Images in separate files: those below a folder, in an order that is the same on every machine."""

import os
import stat
import time
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from rich.text import Text

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.dataset import StoredDataset
from smalti.data.datasets.labels import NONE
from smalti.data.datasets.names import (
    NO_IMAGE,
    SYSTEM,
    LeftOut,
    PackedNames,
    PackedNamesBuilder,
    has_array_suffix,
    has_image_suffix,
    is_system,
)
from smalti.data.decode import read_file
from smalti.data.formats import ARRAYS, EXTENSIONS

FollowLinks: TypeAlias = Literal["inside", "all"]
"""Symbolic links to follow: those that stay inside the folder, or all."""

IsImage: TypeAlias = Callable[[bytes], bool]

IRREGULAR = "not a regular file"
BROKEN = "broken link"
OUTSIDE = "link out of the folder"
INSIDE = "link to a folder that is read anyway"
SEEN = "folder already read under another name"


class Found(NamedTuple):
    """A file below the folder, by its relative path; `left_out` is the reason why it is skipped, empty if it is not."""

    name: bytes
    left_out: str = ""


class _Rule(NamedTuple):
    """What is taken: the folders that links may lead to, whether others are followed, and what is an image by name."""

    within: tuple[bytes, ...]
    follow: FollowLinks
    is_image: IsImage


@contextmanager
def count_up(log: Log, title: str) -> Iterator[Callable[[int], None]]:
    """Show progress where the total is unknown: yields a function to call with the count so far, at any rate."""
    shown, every = time.monotonic(), 0.2 if log.on_screen else 10.0
    status = log.console.status("", spinner="line") if log.on_screen else None

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


def walk(root: Path, follow: FollowLinks = "inside", is_image: IsImage = has_image_suffix) -> Iterator[Found]:
    """Yield every file below `root`; the images in sorted order, whatever the order of the file system.

    No folder is listed twice (by device and inode), so links cannot multiply the data. Only folders are opened: a FIFO
    called x.jpg cannot hang the scan. Memory: the names of one folder at a time.

    Raises:
        OSError: a folder cannot be listed.
    """
    top = os.fsencode(root)
    rule = _Rule(link_targets(top), follow, is_image)
    seen = set[tuple[int, int]]()
    stack, folders = [b""], {b""}  # what comes next is the last of the stack
    while stack:
        name = stack.pop()
        if name not in folders:
            yield Found(name)
            continue
        folders.remove(name)
        path = os.path.join(top, name)
        if (identity := _identity(path)) in seen:
            yield Found(name, SEEN)
            continue
        seen.add(identity)
        first, prefix = len(stack), name and name + b"/"
        with os.scandir(path) as entries:
            for entry in entries:
                inner, kind = prefix + entry.name, _kind(entry, rule)
                if kind not in ("file", "folder"):
                    yield Found(inner, kind)
                    continue
                stack.append(inner)
                if kind == "folder":
                    folders.add(inner)
        stack[first:] = sorted(stack[first:], reverse=True)


def _kind(entry: os.DirEntry[bytes], rule: _Rule) -> str:
    """`file`, `folder`, or the reason why the entry is skipped."""
    if is_system(entry.name):
        return SYSTEM
    if entry.is_symlink():
        return _link_kind(entry, rule)
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    if not rule.is_image(entry.name):
        return NO_IMAGE
    return "file" if entry.is_file(follow_symlinks=False) else IRREGULAR


def _link_kind(entry: os.DirEntry[bytes], rule: _Rule) -> str:
    try:
        mode = os.stat(entry.path).st_mode
    except OSError:  # points nowhere, or at itself
        return BROKEN
    inside = is_within(os.path.realpath(entry.path), rule.within)
    if stat.S_ISDIR(mode):
        if inside:
            return INSIDE
        return "folder" if rule.follow == "all" else OUTSIDE
    if not rule.is_image(entry.name):
        return NO_IMAGE
    if not stat.S_ISREG(mode):
        return IRREGULAR
    return "file" if inside or rule.follow == "all" else OUTSIDE


def link_targets(root: bytes) -> tuple[bytes, ...]:
    """The folders that links may lead to: `root`; of a snapshot in a cache of the Hugging Face hub also its files."""
    real = os.path.realpath(root)
    repository, found, _ = os.path.join(real, b"").rpartition(b"/snapshots/")
    blobs = os.path.join(repository, b"blobs")
    return (real, blobs) if found and os.path.isdir(blobs) else (real,)


def is_within(path: bytes, folders: tuple[bytes, ...]) -> bool:
    """Whether a path is one of the folders, or lies in one; all without links."""
    return any(path == folder or path.startswith(os.path.join(folder, b"")) for folder in folders)


def _identity(path: bytes) -> tuple[int, int]:
    about = os.stat(path)
    return about.st_dev, about.st_ino


def twins(classes: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of class names that differ only in case or Unicode normal form: likely one class, spelled differently."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())].append(name)
    return [tuple(group) for group in alike.values() if len(group) > 1]


def but_a_twin(name: str, classes: Iterable[str]) -> str:
    """The end of a message on a class that is not known: which known one it may be, spelled differently."""
    known = next((group for group in twins([name, *classes]) if name in group), (name, ""))[1]
    return f", but '{known}' is, which differs in case or Unicode form only" if known else ""


class Files(StoredDataset):
    """Images in separate files, named by their paths relative to one folder."""

    def __init__(self, root: Path, names: PackedNames, channels: int) -> None:
        self.root, self.names, self.channels = root, names, channels
        self.left_out = LeftOut()

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        return self.root / self.key(index)

    def key(self, index: int) -> str:
        return os.fsdecode(self.names[range(len(self))[index]])

    def name(self, index: int) -> str:
        return str(self.path(index))

    def read(self, index: int) -> bytes:
        return read_file(self.path(index))

    def length(self, index: int) -> int:
        try:
            return self.path(index).stat().st_size
        except (OSError, ValueError):  # it cannot be read either
            return 0


def _scan(root: Path, log: Log, follow: FollowLinks, is_image: IsImage) -> tuple[PackedNames, LeftOut]:
    names, left_out = PackedNamesBuilder(), LeftOut()
    with count_up(log, f"scan {root}") as tick:
        for name, reason in walk(root, follow, is_image):
            if reason:
                left_out.add(reason, name)
                continue
            names.add(name)
            tick(len(names))
    return names.build(), left_out


def take_folders(images: StoredDataset, names: Iterable[bytes], where: str) -> None:
    """Take the folders of the first level for classes, if all images, by their relative paths, lie in one."""
    firsts, ids = dict[bytes, int](), array("i")
    for name in names:
        first, slash, _ = name.partition(b"/")
        ids.append(firsts.setdefault(first, len(firsts)) if slash else NONE)
    if outside := ids.count(NONE):
        images.no_labels = f"{outside} of {len(ids)} images lie in no folder of a class, but in {where} itself"
    else:
        images.classes, images.labels = tuple(map(os.fsdecode, firsts)), np.array(ids, np.int32)
        images.notes = tuple(twin_notes(images.classes))


class Folder(Files):
    """A folder of image files, searched recursively, in sorted order.

    If every image is in a sub-folder, the sub-folders of the first level are the classes. Where there are no other
    images, arrays (`.npy`) are images. Entries that are hidden, made by the system, or not regular files are skipped
    and counted; so are links out of the folder, unless `follow` is `all`.
    """

    kind = "folder"

    def __init__(self, root: Path, channels: int, log: Log | None = None, follow: FollowLinks = "inside") -> None:
        names, left_out = _scan(root, log or Log(), follow, has_image_suffix)
        if not len(names) and left_out.suffixes.keys() & ARRAYS:
            names, left_out = _scan(root, log or Log(), follow, has_array_suffix)
        super().__init__(root, names, channels)
        self.left_out = left_out
        if not len(names):
            raise self._no_images()
        take_folders(self, map(names.__getitem__, range(len(names))), str(root))
        if self.classes:
            self.notes += tuple(_empty_note(root, self.classes))

    def _no_images(self) -> DataError:
        left_out, fix = self.left_out, "check the path"
        if left_out.counts[OUTSIDE]:
            fix = f"{left_out.counts[OUTSIDE]} links lead out of the folder: follow them with --data.follow-links all"
        elif left_out.suffixes[".tar"]:
            fix = "give tar shards by a pattern, as in --data 'folder/shards-{000..009}.tar'"
        found = left_out.suffix_line() or str(left_out) or "nothing at all"
        looked_for = f"looked for {' '.join(sorted(EXTENSIONS | ARRAYS))}"
        cause = "no file there has an image's extension"
        return DataError(f"no images in {self.root}", cause=cause, fix=f"found {found}; {looked_for}; {fix}")


def twin_notes(classes: Iterable[str]) -> Iterator[str]:
    """A note on each group of `twins`."""
    for group in twins(classes):
        names = ", ".join(repr(name) for name in group)
        yield f"classes {names} differ in case or Unicode form only, and are taken as different"


def _empty_note(root: Path, filled: Iterable[str]) -> Iterator[str]:
    """A note on class folders without images, if there are any."""
    with os.scandir(os.fsencode(root)) as entries:
        folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and not is_system(entry.name)]
    if empty := sorted(set(folders) - set(map(os.fsencode, filled))):
        yield f"{len(empty)} class folders have no images, first {os.fsdecode(empty[0])}"
