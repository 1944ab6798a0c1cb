"""Large files that hold many images, local or remote, opened by number; the cache folder for indices and copies."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from io import FileIO, IOBase
from pathlib import Path
from typing import NamedTuple

from smalti.core.errors import DataError
from smalti.core.files import FETCH, POINTER, is_pointer_file, open_to_others
from smalti.core.log import Log


class FileVersion(NamedTuple):
    """Identifies a file with its content: a change of the content changes it."""

    path: str
    size: int
    mtime_ns: int


class DataFiles(ABC):
    """Files by number. No file stays open, so a dataset that holds this object can be sent to another process.

    Attributes:
        names: a readable name of each file, for messages.
        sizes: the size of each file in bytes.
        in_order: whether a file is fetched whole before it is read, so that switching between files may be slow.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    in_order: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def open(self, number: int) -> FileIO:
        """Open a file, unbuffered; the caller closes it. An `OSError` or a `DataError` if that is not possible."""

    @abstractmethod
    def peek(self, number: int) -> IOBase:
        """Open a file to read a small part of it, which may cost less than `open`; it raises the same errors."""

    @abstractmethod
    def version(self, number: int) -> FileVersion:
        """The key under which the index of a file is cached."""

    def relative(self, name: str) -> str:
        """A file's name, or that of an entry inside it, relative to the common folder of all files."""
        start = self._common
        return name[len(start) :] if name.startswith(start) else os.path.relpath(name, start)

    @cached_property
    def _common(self) -> str:
        """The folder that all files are in, with a slash where it has a name."""
        return os.path.join(os.path.commonpath([os.path.dirname(name) for name in self.names]), "")


class LocalFiles(DataFiles):
    """Files on this machine.

    Raises:
        DataError: a file does not exist, or is a pointer of Git LFS.
        OSError: the size of a file cannot be read.
    """

    def __init__(self, paths: Sequence[Path], what: str = "shard") -> None:
        missing = [path for path in paths if not path.is_file()]
        if missing:
            text = f"no {what} {missing[0]}" + (f" (and {len(missing) - 1} more)" if missing[1:] else "")
            raise DataError(text, cause="it does not exist or is no file", fix="check the path")
        for path in paths:
            require_fetched(path)
        self.names = tuple(map(str, paths))
        self.sizes = tuple(path.stat().st_size for path in paths)

    def open(self, number: int) -> FileIO:
        return open(self.names[number], "rb", buffering=0)

    def peek(self, number: int) -> IOBase:
        return self.open(number)

    def version(self, number: int) -> FileVersion:
        about = os.stat(self.names[number])
        return FileVersion(os.path.realpath(self.names[number]), about.st_size, about.st_mtime_ns)


@contextmanager
def system_errors_named(name: Path | str) -> Iterator[None]:
    """Raise a `DataError` that names the file for an error of the system."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {name}", cause=error.strerror or str(error)) from error


def require_fetched(path: Path) -> None:
    """Raise a `DataError` if a file is a pointer of Git LFS."""
    if is_pointer_file(path):
        raise DataError(f"cannot read {path}", cause=POINTER, fix=FETCH)


def cache_folder() -> Path:
    """The folder for indices of shards and copies of remote files: `SMALTI_CACHE`, or in the user's cache folder."""
    if own := os.environ.get("SMALTI_CACHE"):
        return Path(own).expanduser()
    place = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    # Without a home folder there is no cache: anybody could write to a shared, well-known folder.
    return Path(os.devnull if place.startswith("~") else place) / "smalti"


def make_cache_folder(folder: Path) -> None:
    """Create a folder inside the cache folder; the latter is created with access for this user only."""
    cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    _warn_once(cache_folder())


@cache
def _warn_once(folder: Path) -> None:
    if who := open_to_others(folder):
        Log().say(f"warning: {who}, so what is kept there can be changed by others; set SMALTI_CACHE to your own")
