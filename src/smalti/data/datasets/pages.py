"""The pages of TIFF files as images: a stack is as many images as it has pages."""

import os
from threading import Lock
from typing import Literal, TypeAlias

import numpy as np

from smalti.core.errors import DataError
from smalti.core.files import sha256
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset, Subset
from smalti.data.datasets.names import may_be_image
from smalti.data.tiff import count_pages, page_first

ReadPages: TypeAlias = Literal["first", "all"]
"""Of a TIFF with several pages the first one, or each as an image."""

_TIFF = (b".tif", b".tiff")
_LOOKED_AT = 16
"""Files whose pages are counted before training, at most."""


class Pages(Subset):
    """Each page of each TIFF of another dataset as an image; other files are one image each.

    The bytes of a page are those of its file, with the page in question as the first one.
    """

    def __init__(self, files: ImageDataset, log: Log | None = None) -> None:
        stacks = [number for number in range(len(files)) if _may_be_tiff(files, number)]
        counts = np.ones(len(files), np.int64)
        with (log or Log()).progress("count pages", len(stacks)) as bar:
            for done, number in enumerate(stacks, 1):
                counts[number] = _pages_of(files, number)
                bar.update(done)
        super().__init__(files, np.repeat(np.arange(len(files)), counts))
        self.page_of = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        self.counts, self.digest = counts, files.digest
        self._last: tuple[int, bytes] = (-1, b"")
        self._lock = Lock()

    def read(self, index: int) -> bytes:
        number, page = int(self.positions[index]), int(self.page_of[index])
        if self.counts[number] == 1:
            return self.whole.read(number)
        with self._lock:  # images in order need each file once
            if self._last[0] != number:
                self._last = (number, self.whole.read(number))
            data = self._last[1]
        return page_first(data, page)

    def key(self, index: int) -> str:
        return super().key(index) + self._page(index)

    def name(self, index: int) -> str:
        return super().name(index) + self._page(index)

    def fingerprint(self) -> str:
        return sha256(self.whole.fingerprint().encode() + self.counts.astype("<i8").tobytes())

    def _page(self, index: int) -> str:
        return f"#{self.page_of[index]}" if self.counts[self.positions[index]] > 1 else ""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_lock": None, "_last": (-1, b"")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()


def unread_pages(files: ImageDataset) -> int:
    """How many pages after the first the TIFFs among some files have: evenly spaced ones, or the first alone."""
    some = range(0, len(files), -(-len(files) // (1 if files.in_order else _LOOKED_AT)) or 1)
    return sum(_pages_of(files, number) - 1 for number in some if _may_be_tiff(files, number))


def _pages_of(files: ImageDataset, number: int) -> int:
    try:
        return count_pages(files.read(number))
    except DataError:  # an unreadable file is named when it is its turn
        return 1


def _may_be_tiff(files: ImageDataset, number: int) -> bool:
    """Whether a file is a TIFF by its name, or its name does not say what it is, as of the rows of tables."""
    name = os.fsencode(files.key(number))
    return name.lower().endswith(_TIFF) or not may_be_image(name)
