"""Files that are read back: ordinary ones, of bounded size; JSON, of bounded depth; folders with their digests."""

import errno
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from smalti.core.errors import CheckpointError
from smalti.core.files import FETCH, MANIFEST, NOT_ORDINARY, POINTER, is_pointer_file, replaced_by, sha256

MAX_JSON = 2**26
"""Bytes of JSON that are read from a file, where nothing else is said."""
MAX_LOG = 2**30
"""Bytes of a file with one JSON object a line: those of millions of steps."""

_MAX_DEPTH = 50
_MAX_DIGITS = 20
"""Of a whole number: 64 bits have at most 20."""


def open_stored(path: Path, follow: bool = False) -> BufferedReader:
    """Open a file for reading. A pipe is not waited for, and a device not touched.

    Args:
        follow: whether it may be a link, as all files are in the cache of a hub.

    Raises:
        OSError: it cannot be opened, or is no ordinary file.
    """
    return open(open_ordinary(path, os.O_RDONLY, follow), "rb")


def open_ordinary(path: Path, flags: int, follow: bool = False) -> int:
    """As `open_stored`, with the flags of `os.open`, of which `O_CREAT` makes a file where there is none."""
    with suppress(FileNotFoundError):
        _require_ordinary(os.stat(path, follow_symlinks=follow))
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), 0o666)
    try:
        _require_ordinary(os.fstat(descriptor))  # it may be another one by now
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_stored(path: Path, most: int = MAX_JSON, follow: bool = False) -> bytes:
    """The content of a file.

    Raises:
        OSError: as in `open_stored`.
        ValueError: it has more than `most` bytes.
    """
    with open_stored(path, follow) as file:
        data = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most} bytes")
    return data


def read_object(path: Path, most: int = MAX_JSON, follow: bool = False) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: as in `open_stored`.
        ValueError: as in `parse_object`, or it has more than `most` bytes.
    """
    return parse_object(read_stored(path, most, follow))


def read_object_if_any(path: Path, most: int = MAX_JSON, follow: bool = False) -> dict[str, Any] | None:
    """As `read_object`; None where there is none, or none that can be read."""
    try:
        return read_object(path, most, follow)
    except (OSError, ValueError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in a file with one a line, whose numbers may be infinite or NaN.

    A power cut may leave a part of a line, to which the next one was appended: what is no object is left out.

    Raises:
        OSError: as in `open_stored`.
        ValueError: the file is too large.
    """
    found = []
    for line in read_stored(path, MAX_LOG).splitlines():
        with suppress(ValueError):
            found.append(_object(parse_json(line, finite=False)))
    return found


def parse_object(text: bytes | str) -> dict[str, Any]:
    """A JSON object from outside.

    Raises:
        ValueError: as in `parse_json`, or it is something else.
    """
    return _object(parse_json(text))


def parse_json(text: bytes | str, finite: bool = True) -> Any:
    """JSON from outside, in little memory and time.

    Raises:
        ValueError: it is not JSON, is nested deeply, has a key twice or a number that is beyond 64 bits or not finite.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_reject_duplicate_keys,
            parse_int=_parse_int,
            parse_float=_parse_float if finite else float,
            parse_constant=_reject_constant if finite else float,
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [inner for item in level for inner in _children(item)]
    if level:
        raise ValueError("it is nested too deeply")
    return value


def read_folder(path: Path) -> dict[str, bytes]:
    """The files of a folder written by `write_folder`.

    Raises:
        CheckpointError: one is missing, or differs from its size or digest; the cause says which.
    """
    return dict(_verified(path))


def is_intact(path: Path) -> bool:
    """Whether `read_folder` would accept the folder. One file at a time is in memory."""
    try:
        for _ in _verified(path):
            pass
    except CheckpointError:
        return False
    return True


def _require_ordinary(about: os.stat_result) -> None:
    if stat.S_ISLNK(about.st_mode):
        raise OSError(errno.ELOOP, "it is a link, and none is followed here")
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, NOT_ORDINARY)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _parse_float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        _reject_constant(text[:_MAX_DIGITS])
    return value


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no finite number")


def _verified(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file in the manifest, each compared with its size and digest."""
    folder = path if path.exists() else replaced_by(path)
    for name, (size, digest) in _read_manifest(folder).items():
        file = folder / name
        try:
            if not file.is_file():
                raise _damaged(path, f"{name} is missing")
            found = file.stat().st_size
            if found != size and is_pointer_file(file):
                raise CheckpointError(f"{path} is not all here", cause=f"{name}: {POINTER}", fix=FETCH)
            if found != size:
                raise _damaged(path, f"{name} has {found} bytes, not {size}")
            data = read_stored(file, size, follow=True)
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or str(error)
            raise _damaged(path, f"{name} cannot be read: {cause}") from error
        if sha256(data) != digest:
            raise _damaged(path, f"{name} differs from its digest")
        yield name, data


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and digest of every file."""
    try:
        manifest = read_object(folder / MANIFEST, follow=True)
        entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except OSError as error:
        raise _damaged(folder, f"no readable {MANIFEST} there") from error
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(folder, f"{MANIFEST} cannot be understood") from error
    if not all(Path(name).name == name for name in entries):
        raise _damaged(folder, f"{MANIFEST} names files elsewhere")
    return entries


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate keys."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _damaged(path: Path, cause: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged", cause=cause)
