"""Large files that hold many images, opened by number, wherever they are."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from io import FileIO, IOBase
from pathlib import Path

from smalti.core.errors import DataError
from smalti.data.datasets.index_cache import Slot


class DataFiles(ABC):
    """Files by number. No file stays open: a source that holds one can be sent to another process.

    Attributes:
        names: what each is called, for people.
        sizes: bytes of each.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def open(self, number: int) -> FileIO:
        """A file, unbuffered; the caller closes it.

        Raises:
            OSError, DataError: it cannot be had.
        """

    @abstractmethod
    def peek(self, number: int) -> IOBase:
        """The same file for reading a small part of it, which may cost less; raises what `open` does."""

    @abstractmethod
    def slot(self, number: int) -> Slot:
        """Where the index of a file is kept, for as long as the file stays as it is."""

    def relative(self, name: str) -> str:
        """A name, or something inside a file of that name, without what all files have in common."""
        start = self._common
        return name[len(start) :] if name.startswith(start) else os.path.relpath(name, start)

    @cached_property
    def _common(self) -> str:
        """The folder that all files are in, with a slash where it has a name."""
        return os.path.join(os.path.commonpath([os.path.dirname(name) for name in self.names]), "")


class LocalFiles(DataFiles):
    """Files of this machine.

    Raises:
        DataError: one does not exist.
        OSError: one cannot be looked at.
    """

    def __init__(self, paths: Sequence[Path], what: str = "shard") -> None:
        missing = [path for path in paths if not path.is_file()]
        if missing:
            text = f"no {what} {missing[0]}" + (f" (and {len(missing) - 1} more)" if missing[1:] else "")
            raise DataError(text, cause="it does not exist or is no file", fix="check --data")
        self.names = tuple(map(str, paths))
        self.sizes = tuple(path.stat().st_size for path in paths)

    def open(self, number: int) -> FileIO:
        return open(self.names[number], "rb", buffering=0)

    def peek(self, number: int) -> IOBase:
        return self.open(number)

    def slot(self, number: int) -> Slot:
        return Slot(Path(self.names[number]), os.stat(self.names[number]))
