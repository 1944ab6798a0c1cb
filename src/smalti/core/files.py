"""Atomic writes: a file or folder is written under a temporary name, flushed to the disk, and then renamed."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from smalti.core.errors import OutputError, UsageError

REPLACED = ".replaced"
"""Suffix of a folder while another one takes its place."""

MANIFEST = "MANIFEST.json"
POINTER, FETCH = "it is a Git LFS pointer, and the file itself was not fetched", "fetch it with: git lfs pull"
_MAX_POINTER = 1024
_SPARE = 1.2
"""Free space to require, as a multiple of the bytes to be written."""
NOT_ORDINARY = "what is there is no ordinary file"
_NO_FLUSHING = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS)
"""Errors where a file system cannot flush a folder, as a share or a cloud: there an entry is kept when it is made."""
_TRANSIENT = (errno.ESTALE, errno.EACCES, errno.ENOENT)
"""Errors of network file systems that may pass, and the error where the folder has just been removed."""
_PAUSES = (0.1, 0.3, 0.9)
"""Seconds to wait before each further attempt to write."""


def sha256(*parts: bytes | memoryview) -> str:
    """The SHA-256 digest of the concatenated parts, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def is_pointer(begin: bytes) -> bool:
    """Whether a file that begins so is a pointer of Git LFS, which stands for a large file that was not fetched."""
    return begin.startswith(b"version https://git-lfs")


def is_pointer_file(path: Path) -> bool:
    """Whether a file is small and a pointer of Git LFS.

    Raises:
        OSError: it cannot be read.
    """
    if not path.is_file() or path.stat().st_size > _MAX_POINTER:
        return False
    with open(path, "rb") as file:
        return is_pointer(file.read(_MAX_POINTER))


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write all parts to `path` atomically: after a crash it holds either the old content or the new one.

    The new file has the mode of the file that it replaces.

    Raises:
        OutputError: it cannot be written, or what is there is a link or a device.
    """
    _with_retries(path, lambda: _replace(path, lambda new: _write_new(new, parts)))


def write_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """As `write_bytes`, for content that is too large for memory: `write` fills the new file.

    It is called again after a transient error, each time with an empty file.

    Raises:
        OutputError: as `write_bytes`.
    """
    _with_retries(path, lambda: _replace(path, lambda new: _fill_new(new, write)))


def append(path: Path, data: bytes) -> None:
    """Append all of `data` or nothing to a file, which is created where there is none.

    Raises:
        OutputError: it cannot be written, or what is there is a link or a device.
    """
    try:
        # Opening a pipe that nobody reads would wait for ever.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(path, flags, 0o666)
        try:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise OSError(errno.EEXIST, NOT_ORDINARY)
            try:
                _write_all(handle, data)
            except OSError:
                os.ftruncate(handle, about.st_size)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; infinite and NaN numbers are an error."""
    write_bytes(path, _json(value))


def write_folder(path: Path, files: dict[str, bytes]) -> None:
    """Write a folder of files atomically, with a MANIFEST.json of sizes and digests written last.

    Everything is flushed to the disk before the folder gets its name. An existing folder of that name is renamed first;
    should the process be killed between the two renames, `stored.read_folder` still finds it.

    Raises:
        OutputError: it cannot be written.
    """
    manifest = {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in files.items()}
    content = files | {MANIFEST: _json(manifest)}
    _with_retries(path, lambda: _write_folder(path, content))


def copy_folder(source: Path, path: Path, leave: list[str]) -> None:
    """Copy a folder, without the names in `leave`, to `path`, which must not exist and appears when all is copied.

    Raises:
        OutputError: the source cannot be read, or the copy cannot be written.
    """
    temporary = _temporary(path)
    try:
        _make_folders(path.parent)
        shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(*leave))
        os.rename(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(f"cannot copy {source} to {path}", cause=error.strerror or str(error)) from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write files into, which gets the name `path` when the block ends; if it fails, nothing is left.

    Args:
        path: must not exist, or be an empty folder.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = _temporary(path)
    try:
        _make_folders(path.parent)
        temporary.mkdir()
        yield temporary
        for written in sorted(temporary.iterdir()):
            with open(written, "rb") as file:
                os.fsync(file.fileno())
        _sync_folder(temporary)
        os.rename(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder that others may be reading: it is renamed first, so under its name it is whole or absent."""
    leaving = _temporary(path)
    with contextlib.suppress(OSError):
        os.rename(path, leaving)
        shutil.rmtree(leaving, ignore_errors=True)


def remove_leftovers(folder: Path, names: str = r".+") -> list[str]:
    """Remove temporary files of killed writers from a folder. The caller holds the lock that those writers held.

    Args:
        folder: where they wrote.
        names: a regular expression of the names they wrote; other temporary files may belong to a running process.

    Returns:
        The names of the removed files and folders.
    """
    removed = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        if re.fullmatch(rf"\.(?:{names})\.[0-9a-f]{{32}}", entry.name) or _is_replaced(entry):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
            removed.append(entry.name)
    return removed


def require_new(folder: Path, what: str) -> None:
    """Check that a folder can be written and that nothing is in it yet.

    Args:
        what: is written, for the message: `an export`.

    Raises:
        UsageError: the folder is not empty, or is something else.
        OutputError: as `require_place`.
    """
    require_place(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty", cause=f"{what} never overwrites", fix="choose another --out")


def require_place(path: Path) -> None:
    """Check that `path` can be written, before its content is computed. Nothing is created.

    Raises:
        OutputError: the nearest existing parent is not a folder, or not writable.
    """
    whole = path.absolute()
    try:
        os.lstat(whole)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise _cannot_write(path, error) from error
    above = next(place for place in (whole, *whole.parents) if os.path.exists(place))
    if above != whole and not above.is_dir():
        raise _cannot_write(path, NotADirectoryError(errno.ENOTDIR, f"{above} is a file"))
    if not os.access(above, os.W_OK | (os.X_OK if above.is_dir() else 0)):
        raise _cannot_write(path, PermissionError(errno.EACCES, f"{above} is not yours to write"))


def make_folder(path: Path) -> None:
    """Create a folder, and write a test file into it, so that a run does not fail after hours of work."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write into {path}", cause=error.strerror or str(error)) from error


def open_to_others(folder: Path) -> str:
    """Who else can change the content of an existing folder, as a text; empty where only this user can."""
    about = folder.stat()
    if about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX:
        return f"everybody can write into {folder}"
    if hasattr(os, "geteuid") and about.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    return ""


def _with_retries(path: Path, write: Callable[[], None]) -> None:
    """Call `write`; after a transient error up to three times more."""
    for pause in (*_PAUSES, None):
        try:
            return write()
        except OSError as error:
            if pause is None or error.errno not in _TRANSIENT:
                raise _cannot_write(path, error) from error
            time.sleep(pause)


def _replace(path: Path, write_new: Callable[[Path], None]) -> None:
    """Put the file that `write_new` writes, under a temporary name, in the place of `path`."""
    temporary = _temporary(path)
    try:
        if not _is_ordinary(path):
            raise OSError(errno.EEXIST, NOT_ORDINARY)
        _make_folders(path.parent)
        write_new(temporary)
        if path.exists() and (mode := path.stat().st_mode) != temporary.stat().st_mode:
            temporary.chmod(stat.S_IMODE(mode))  # some file systems refuse even the mode that it has
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write_folder(path: Path, content: dict[str, bytes]) -> None:
    temporary, replaced = _temporary(path), replaced_by(path)
    try:
        _make_folders(path.parent)
        _require_space(path.parent, sum(map(len, content.values())))
        os.mkdir(temporary)
        for name, data in content.items():
            _write_new(temporary / name, (data,))
        _sync_folder(temporary)
        _require_sizes(temporary, content)
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(path, replaced)
        os.rename(temporary, path)
        _sync_folder(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}", cause=error.strerror or str(error))


def _is_ordinary(path: Path) -> bool:
    """Whether there is a regular file, or nothing."""
    return not path.is_symlink() and (path.is_file() or not path.exists())


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _temporary(path: Path) -> Path:
    """A unique name in the same folder, which `remove_leftovers` recognises."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def replaced_by(path: Path) -> Path:
    """The name of an old folder while a new one takes its place; after a crash in between, only the old one exists."""
    return path.with_name(path.name + REPLACED)


def _is_replaced(path: Path) -> bool:
    """Whether this is an old folder whose replacement is complete."""
    return path.name.endswith(REPLACED) and path.with_name(path.name.removesuffix(REPLACED)).exists()


def _make_folders(path: Path) -> None:
    """Create a folder and its parents, and flush each of them to the disk."""
    if not path.is_dir():
        _make_folders(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def _write_new(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a new file and flush it to the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        for part in parts:
            _write_all(handle, part)
        os.fsync(handle)
    finally:
        os.close(handle)


def _fill_new(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a new file, and flush it to the disk."""
    with open(path, "xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _write_all(handle: int, data: bytes | memoryview) -> None:
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(handle, left) :]


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSHING:
            raise
    finally:
        os.close(handle)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise an OutputError where so many bytes, and a fifth more, are not free."""
    try:
        _require_space(folder, needed)
    except OSError as error:
        fix = "free some, or use --out on another disk"
        raise OutputError(f"no room for {what} in {folder}", cause=error.strerror or str(error), fix=fix) from error


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < _SPARE * needed:
        wanted = f"{_SPARE * needed / 1e6:.1f} MB are needed ({needed / 1e6:.1f} MB to write, and a fifth to spare)"
        raise OSError(errno.ENOSPC, f"{wanted}, and {free / 1e6:.1f} MB are free")


def _require_sizes(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        size = os.stat(folder / name).st_size
        if size != len(data):
            raise OSError(errno.EIO, f"{name} has {size} bytes, and {len(data)} were written")
