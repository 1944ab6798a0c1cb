"""Large files that hold many images, opened by number, wherever they are; the folder for what is kept of them."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache, cached_property
from io import FileIO, IOBase
from pathlib import Path
from typing import NamedTuple

from smalti.core.errors import DataError
from smalti.core.files import open_to_others
from smalti.core.log import Log


class FileVersion(NamedTuple):
    """What a file is known by as long as its content is the same."""

    path: str
    size: int
    mtime_ns: int


class DataFiles(ABC):
    """Files by number. No file stays open: a source that holds one can be sent to another process.

    Attributes:
        names: what each is called, for people.
        sizes: bytes of each.
        in_order: each is fetched before it is read, so that going from one to another and back may be slow.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    in_order: bool = False

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
    def version(self, number: int) -> FileVersion:
        """What the index of a file is kept under."""

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

    def version(self, number: int) -> FileVersion:
        about = os.stat(self.names[number])
        return FileVersion(os.path.realpath(self.names[number]), about.st_size, about.st_mtime_ns)


def cache_folder() -> Path:
    """Where indices of shards and copies of remote files are kept: `SMALTI_CACHE`, or the system's place for caches."""
    if own := os.environ.get("SMALTI_CACHE"):
        return Path(own).expanduser()
    place = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    # Without a home there is none: what is kept in a place that everybody knows could be anybody's.
    return Path(os.devnull if place.startswith("~") else place) / "smalti"


def make_cache_folder(folder: Path) -> None:
    """Make a folder of the cache; the cache itself is made for this user alone.

    Raises:
        OSError: it cannot be.
    """
    cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    _warn_once(cache_folder())


@cache
def _warn_once(folder: Path) -> None:
    if who := open_to_others(folder):
        Log().say(f"warning: {who}, so what is kept there can be changed by others; set SMALTI_CACHE to your own")
