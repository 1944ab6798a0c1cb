"""Copies of remote files in the user's cache folder, up to a number of bytes; those unused for longest go first."""

import contextlib
import fcntl
import os
import shutil
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from smalti.core.errors import DataError
from smalti.data.datasets.index_cache import cache_folder, make_cache_folder

GIGABYTE = 10**9
DEFAULT_GIGABYTES = 20
_PART = ".part"
_ABANDONED = 3600.0
"""Seconds after which a download that nobody writes to any more was left behind by a process that died."""


class _Copy(NamedTuple):
    """A file of the cache: when it was used last, its bytes, where it is."""

    used: float
    bytes: int
    path: Path


class RemoteCache:
    """A folder of files called by what they hold. Processes share it; none needs to know of the others.

    What an open data set uses is named in a lease, a file that its process keeps locked; the lock ends with the
    process, however it ends. A file that is read stays readable when it is removed: readers hold it open.
    """

    def __init__(self) -> None:
        self.folder, self.max_bytes = cache_folder() / "remote", max_cache_bytes()

    def open(self, name: str) -> FileIO:
        """A file that is there, which counts as a use of it.

        Raises:
            OSError: it is not there.
        """
        path = self.folder / name
        file = FileIO(path)
        if time.time() - os.fstat(file.fileno()).st_mtime > 60:
            with contextlib.suppress(OSError):
                os.utime(path)
        return file

    def add(self, name: str, size: int, write: Callable[[Path], None]) -> None:
        """Let `write` fill a temporary file, and give it its name when it has the right size.

        Raises:
            DataError: no room, or another size.
            OSError: the folder cannot be written.
        """
        make_cache_folder(self.folder)
        with _locked(self.folder / f"lock-{name[:2]}"):
            if (self.folder / name).exists():  # another process was quicker
                return
            self._make_room(size)
            part = self.folder / f"{name}.{uuid.uuid4().hex}{_PART}"
            try:
                write(part)
                if (found := part.stat().st_size) != size:
                    raise DataError("", cause=f"{found} bytes came where {size} were promised")
                os.replace(part, self.folder / name)
            finally:
                part.unlink(missing_ok=True)

    def lease(self, owner: object, names: Iterable[str]) -> None:
        """Keep files from being removed for as long as `owner` lives."""
        leases = self.folder / "leases"
        make_cache_folder(leases)
        hidden, path = (leases / f"{start}{uuid.uuid4().hex}" for start in (".", ""))
        descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        weakref.finalize(owner, _end_lease, path, descriptor, os.getpid())
        os.write(descriptor, "\n".join(names).encode())
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.rename(hidden, path)

    def _make_room(self, size: int) -> None:
        if (free := shutil.disk_usage(self.folder).free) < size:
            raise DataError("", cause=f"{gigabytes(size)} needed, {gigabytes(free)} left on the disk of {self.folder}")
        with _locked(self.folder / "lock"):
            files, leased = sorted(self._files(), key=lambda file: file.used), self._leased()
            total, stays = sum(f.bytes for f in files), sum(f.bytes for f in files if f.path.name in leased)
            if stays + size > self.max_bytes:
                cause = f"the cache of {gigabytes(self.max_bytes)} in {self.folder} is full of what other runs use"
                raise DataError("", cause=cause, fix="raise SMALTI_CACHE_GB, or wait for them")
            for file in files:
                if total + size <= self.max_bytes:
                    return
                if file.path.name not in leased:
                    with contextlib.suppress(OSError):
                        file.path.unlink()
                        total -= file.bytes

    def _files(self) -> Iterator[_Copy]:
        """All but the downloads that go on now."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    about = entry.stat(follow_symlinks=False)
                    under_way = entry.name.endswith(_PART) and time.time() - about.st_mtime < _ABANDONED
                    if entry.is_file(follow_symlinks=False) and not under_way and not entry.name.startswith("lock"):
                        yield _Copy(about.st_mtime, about.st_size, Path(entry.path))

    def _leased(self) -> set[str]:
        """The files that open data sets use; leases of processes that have ended are removed."""
        names: set[str] = set()
        for path in (self.folder / "leases").glob("[!.]*"):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                except OSError:
                    names.update(file.read().decode().splitlines())
        return names


def max_cache_bytes() -> int:
    """The bound of the cache: `SMALTI_CACHE_GB`, 20 where it is not set.

    Raises:
        DataError: it is no number.
    """
    text = os.environ.get("SMALTI_CACHE_GB") or str(DEFAULT_GIGABYTES)
    try:
        return round(float(text) * GIGABYTE)
    except (ValueError, OverflowError):
        raise DataError(f"SMALTI_CACHE_GB is {text[:40]!r}", cause="no number", fix="give gigabytes, as 100") from None


def gigabytes(size: int) -> str:
    """A size for people, as `1.5 GB` or `20 MB`."""
    return f"{size / GIGABYTE:.3g} GB" if size >= GIGABYTE else f"{size / 1e6:.3g} MB"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time, where the file system has locks."""
    with open(path, "ab") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _end_lease(path: Path, descriptor: int, process: int) -> None:
    """Not in a forked child: the lease is its parent's."""
    if os.getpid() == process:
        path.unlink(missing_ok=True)
    os.close(descriptor)
