"""One writer at a time per folder, by a file lock that the operating system releases when its holder dies."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smalti.core.errors import LockError, OutputError
from smalti.core.stored import read_stored

LOCK = ".lock"
_UNKNOWN = "unknown"
_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder. A lock file that a dead process has left does not block.

    Some network file systems have no locks; there, users must see to it themselves that only one process writes.

    Raises:
        LockError: another process holds it.
        OutputError: the folder cannot be written.
    """
    path = folder / LOCK
    try:
        descriptor = _acquire(path)
    except BlockingIOError:
        cause = f"by process {_named_holder(folder)}"
        raise LockError(f"{folder} is being written", cause=cause, fix="wait for it, or use another --out") from None
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
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Wait until nobody else is in here for a folder, where the file system knows locks; it leaves no file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def holder(folder: Path) -> str:
    """The process and machine that took the lock of a folder last."""
    with suppress(OSError, ValueError):
        return read_stored(folder / LOCK, 100).decode(errors="replace").strip() or _UNKNOWN
    return _UNKNOWN


def _named_holder(folder: Path) -> str:
    """`holder` of a lock that is held now: its name is in the file a moment after it has the lock."""
    deadline = time.monotonic() + 1
    while (name := holder(folder)) == _UNKNOWN and time.monotonic() < deadline:
        time.sleep(0.02)
    return name


def is_written(folder: Path) -> bool:
    """Whether a process writes to a folder, as far as its lock tells without being touched."""
    if not os.path.lexists(folder / LOCK):
        return False
    number, _, node = holder(folder).partition(" on ")
    if node != os.uname().nodename or not number.isdigit():
        return True  # on another machine, or it is just being written down
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def process_name() -> str:
    """The name of this process in lock files."""
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
                if os.fstat(descriptor).st_nlink == 1:
                    os.truncate(descriptor, 0)
                    os.write(descriptor, f"{process_name()}\n".encode())
                    return descriptor
                path.unlink()  # the file has another name, and what is in it is not ours to replace
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the previous holder removed the file between our opening and locking it, or we did


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at `path`."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False
