"""A pack, as `smalti prepare` writes it: images in a few large files, read by memory map. See `format.py`."""

import os
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.listing import LeftOut
from smalti.data.packs.files import Index, check_digest, check_size, read_about, read_index
from smalti.data.packs.format import ABOUT, DamagedPackError, PackPart, bin_path, index_path

UNREADABLE = "unreadable when it was prepared"
MAX_MAPS = 256
"""Parts that are mapped at a time; each costs a file descriptor, of which a process often has 1024."""


class Pack(ImageDataset):
    """The images of a prepared data set, in its order, with their names and labels.

    Opening reads the indices and compares sizes; about 30 bytes an image and its name stay in memory. Parts are mapped
    when first read. It may be used by many threads and sent to other processes, which map the parts for themselves.
    """

    kind = "pack"

    def __init__(self, path: Path, channels: int) -> None:
        """Open a pack.

        Raises:
            DataError: it is not finished, is damaged, or cannot be read.
        """
        self.path, self.channels = path, channels
        self.about = read_about(path)
        self.left_out = LeftOut()
        self._maps: dict[int, mmap] = {}
        self._indices: list[Index] = []
        start = 0
        for number, part in enumerate(self.about.parts):
            start = self._open(number, part, start)
        self._ends = np.cumsum([len(index.ends) for index in self._indices])
        self.classes = self.about.classes
        if not len(self):
            raise DamagedPackError(path / ABOUT, "it has no images")
        if self.classes:
            self.labels = np.concatenate([index.labels for index in self._indices])
            if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
                raise DamagedPackError(path / ABOUT, f"labels lie outside the {len(self.classes)} classes")
        if self.about.settings.channels < channels:
            self.notes = ("the pack is grey",)

    def _open(self, number: int, part: PackPart, start: int) -> int:
        """Read an index; gives where in the source the next part goes on."""
        path = index_path(self.path, number)
        header, index = read_index(path)
        if (header.part, header.settings, header.start) != (part, self.about.settings, start):
            raise DamagedPackError(path, f"it is not the one that {ABOUT} speaks of")
        check_size(bin_path(self.path, number), part)
        self._indices.append(index)
        if header.unreadable:
            self.left_out.add(UNREADABLE, os.fsencode(header.unreadable[0][1]), len(header.unreadable))
        return header.stop

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, index: int) -> bytes:
        number, start, stop = self._span(index)
        path, expected = bin_path(self.path, number), self.about.parts[number].bytes
        try:
            images = self._map(number, path)
            if images.size() != expected:  # reading a map beyond the end of its file would kill the process
                raise DamagedPackError(path, f"it has {images.size()} bytes now, not {expected}")
            return images[start:stop]
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise DataError(f"cannot read {path}", cause=getattr(error, "strerror", None) or str(error)) from error

    def key(self, index: int) -> str:
        number, row = self._place(index)
        return os.fsdecode(self._indices[number].names[row])

    def name(self, index: int) -> str:
        return f"{bin_path(self.path, self._place(index)[0])}/{self.key(index)}"

    def length(self, index: int) -> int:
        _, start, stop = self._span(index)
        return stop - start

    def fingerprint(self) -> str:
        return self.about.digest

    def verify(self, log: Log) -> None:
        """Read everything and compare it with its digests.

        Raises:
            DataError: a part is damaged; it says which.
        """
        with log.progress("verify", len(self.about.parts)) as bar:
            for number, part in enumerate(self.about.parts):
                check_digest(bin_path(self.path, number), part)
                bar.update(number + 1)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def _place(self, index: int) -> tuple[int, int]:
        """The part of an image, and its row there."""
        position = range(len(self))[index]
        number = int(np.searchsorted(self._ends, position, side="right"))
        return number, position - int(self._ends[number - 1] if number else 0)

    def _span(self, index: int) -> tuple[int, int, int]:
        """The part of an image, and where it begins and ends there."""
        number, row = self._place(index)
        ends = self._indices[number].ends
        return number, int(ends[row - 1]) if row else 0, int(ends[row])

    def _map(self, number: int, path: Path) -> mmap:
        """A part in memory. A map that is given up here is closed when the last thread has done reading it."""
        found = self._maps.get(number)
        if found is None:
            mapped = list(self._maps)
            for oldest in mapped[: max(len(mapped) + 1 - MAX_MAPS, 0)]:
                self._maps.pop(oldest, None)
            with open(path, "rb", buffering=0) as file:
                found = self._maps.setdefault(number, mmap(file.fileno(), 0, access=ACCESS_READ))
        return found
