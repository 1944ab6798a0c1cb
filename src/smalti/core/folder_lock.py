"""One writer at a time in a folder, by a lock that the system releases when its holder dies."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smalti.core.errors import LockError, OutputError

LOCK = ".lock"
_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder. What a dead process has left behind is taken over by itself.

    Where the file system knows no locks (some network ones), there is none, and it is for the user to run one writer.

    Raises:
        LockError: another process holds it.
        OutputError: the folder cannot be written.
    """
    path = folder / LOCK
    try:
        descriptor = _acquire(path)
    except BlockingIOError:
        raise LockError(
            f"{folder} is being written", cause=f"by process {holder(folder)}", fix="wait for it, or use another --out"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot lock {folder}", cause=error.strerror or str(error)) from error
    try:
        yield
    finally:
        with suppress(OSError):
            if _is_still(path, descriptor):
                path.unlink()
        os.close(descriptor)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until nobody else is in here for a folder, where the file system knows locks; it leaves no file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def holder(folder: Path) -> str:
    """Who has written the lock of a folder last: process and machine."""
    with suppress(OSError):
        return (folder / LOCK).read_text(errors="replace")[:100].strip() or "unknown"
    return "unknown"


def own_name() -> str:
    """What this process writes into locks."""
    return f"{os.getpid()} on {os.uname().nodename}"


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS_HERE:
                    raise
            if _is_still(path, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{own_name()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder before us has removed the file between our two steps


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one that others will find."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False
