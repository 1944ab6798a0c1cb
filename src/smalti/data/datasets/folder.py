"""Images that are files of their own: a folder, or a list of paths."""

import os
from array import array
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.dataset import StoredDataset
from smalti.data.datasets.labels import twins
from smalti.data.datasets.listing import OUTSIDE, FollowLinks, LeftOut, Names, NamesBuilder, count_up, is_system, walk
from smalti.data.datasets.lists import read_list
from smalti.data.decode import EXTENSIONS, read_file


class Files(StoredDataset):
    """Images that are files of their own, named relative to one folder."""

    def __init__(self, root: Path, names: Names, channels: int) -> None:
        self.root, self.names, self.channels = root, names, channels
        self.left_out = LeftOut()

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """The file of an image."""
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


class Folder(Files):
    """A folder of image files, searched recursively, in sorted order.

    Where every image lies in a sub-folder, the first level of sub-folders are the classes. What is hidden, made by the
    system, or no regular file is left out and counted; so are links that lead out of the folder, unless all are wanted.
    """

    kind = "folder"

    def __init__(self, root: Path, channels: int, log: Log | None = None, follow: FollowLinks = "inside") -> None:
        names, left_out, firsts, labels = NamesBuilder(), LeftOut(), dict[bytes, int](), array("i")
        with count_up(log or Log(), f"scan {root}") as tick:
            for name, reason in walk(root, follow):
                if reason:
                    left_out.add(reason, name)
                    continue
                names.add(name)
                first, slash, _ = name.partition(os.fsencode(os.sep))
                labels.append(firsts.setdefault(first, len(firsts)) if slash else -1)
                tick(len(names))
        super().__init__(root, names.build(), channels)
        self.left_out = left_out
        if not len(names):
            raise self._no_images()
        ids = np.array(labels, np.int32)
        if int(ids.min()) >= 0:
            self.classes, self.labels = tuple(os.fsdecode(first) for first in firsts), ids
            self.notes = (*_twin_notes(self.classes), *_empty_note(root, firsts))

    def _no_images(self) -> DataError:
        left_out, fix = self.left_out, "check --data"
        if left_out.counts[OUTSIDE]:
            fix = f"{left_out.counts[OUTSIDE]} links lead out of the folder: follow them with --data.follow-links all"
        elif left_out.suffixes[".tar"]:
            fix = "give tar shards by a pattern, as in --data 'folder/shards-{000..009}.tar'"
        found = left_out.suffix_line() or str(left_out) or "nothing at all"
        looked_for = f"looked for {' '.join(sorted(EXTENSIONS))}"
        cause = "no file there has an image's extension"
        return DataError(f"no images in {self.root}", cause=cause, fix=f"found {found}; {looked_for}; {fix}")


class FileList(Files):
    """The images that a list or CSV file names, in its order; relative paths start at the folder of the list."""

    kind = "list"

    def __init__(self, path: Path, channels: int) -> None:
        names, labels = read_list(path)
        super().__init__(path.parent, names, channels)
        if labels is not None:
            self.labels, self.classes = labels.build()
            self.notes = tuple(_twin_notes(self.classes))


def _twin_notes(classes: Iterable[str]) -> Iterator[str]:
    for group in twins(classes):
        names = ", ".join(repr(name) for name in group)
        yield f"classes {names} differ in case or Unicode form only, and are taken as different"


def _empty_note(root: Path, filled: Collection[bytes]) -> Iterator[str]:
    """Class folders that nothing was found in."""
    with os.scandir(os.fsencode(root)) as entries:
        folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and not is_system(entry.name)]
    if empty := sorted(set(folders) - set(filled)):
        yield f"{len(empty)} class folders have no images, first {os.fsdecode(empty[0])}"
