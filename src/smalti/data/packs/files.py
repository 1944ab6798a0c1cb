"""Reading the small files of a pack, whatever is in them, and checking its large ones."""

import hashlib
import json
import stat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from smalti.core.config import from_json
from smalti.core.errors import DataError, UsageError
from smalti.core.files import sha256
from smalti.data.datasets.listing import Names
from smalti.data.packs.format import ABOUT, VERSION, About, DamagedPackError, Header, PackPart, digest_of

T = TypeVar("T")

_MAX_BYTES = 1 << 30
_ROW = 20  # bytes of an image in the arrays


class Index(NamedTuple):
    """Of each image of a part: where it ends in the .bin, its label and its name."""

    ends: NDArray[np.uint64]
    labels: NDArray[np.int32]
    names: Names


def join_index(index: Index) -> bytes:
    """What follows the first line of an index file."""
    arrays = (index.ends.astype("<u8"), index.names.ends.astype("<u8"), index.labels.astype("<i4"))
    return b"".join(array.tobytes() for array in arrays) + index.names.joined


def read_about(folder: Path) -> About:
    """pack.json.

    Raises:
        DataError: there is none, it cannot be read, is damaged, or is of another version.
    """
    path = folder / ABOUT
    if not path.exists():
        raise DataError(
            f"{folder} is not finished", cause=f"it has no {ABOUT}", fix="run the same smalti prepare again"
        )
    about = _parse(About, _read(path), path, "smalti_pack")
    if digest_of(about.classes, about.parts) != about.digest:
        raise DamagedPackError(path, "classes and parts differ from the digest")
    if about.images != sum(part.images for part in about.parts) or min(about.images, about.unreadable) < 0:
        raise DamagedPackError(path, "the number of images is not that of its parts")
    return about


def read_index(path: Path) -> tuple[Header, Index]:
    """The index of a part.

    Raises:
        DataError: it cannot be read, is damaged, or is of another version.
    """
    line, _, body = _read(path).partition(b"\n")
    header = _parse(Header, line, path, "smalti_pack_part")
    count = header.part.images
    if sha256(body) != header.part.index_sha256:
        raise DamagedPackError(path, "it differs from its digest")
    if min(count, header.start) < 0 or count * _ROW > len(body):
        raise DamagedPackError(path, f"no room for {count} images")
    ends = np.frombuffer(body, "<u8", count).astype(np.uint64)
    name_ends = np.frombuffer(body, "<u8", count, 8 * count).astype(np.uint64)
    labels = np.frombuffer(body, "<i4", count, 16 * count).astype(np.int32)
    names = body[_ROW * count :]
    if not (_divides(ends, header.part.bytes) and _divides(name_ends, len(names))):
        raise DamagedPackError(path, "images or names lie outside the part")
    return header, Index(ends, labels, Names(names, name_ends))


def check_size(path: Path, part: PackPart) -> None:
    """Look at the size of a .bin, which takes no time.

    Raises:
        DataError: it is not there, cannot be read, or has another size.
    """
    try:
        about = path.stat()
    except FileNotFoundError as error:
        raise DamagedPackError(path, "it is missing") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if about.st_size != part.bytes or not stat.S_ISREG(about.st_mode):
        raise DamagedPackError(path, f"it has {about.st_size} bytes, not {part.bytes}")


def check_digest(path: Path, part: PackPart) -> None:
    """Read the whole of a .bin and compare it with its digest.

    Raises:
        DataError: it is not there, cannot be read, or differs.
    """
    check_size(path, part)
    try:
        with open(path, "rb", buffering=0) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != part.sha256:
        raise DamagedPackError(path, "it differs from its digest")


def _divides(ends: NDArray[np.uint64], length: int) -> bool:
    """Whether `ends` cut a stretch of `length` into pieces, in order."""
    return int(ends[-1] if len(ends) else 0) == length and bool((ends[1:] >= ends[:-1]).all())


def _read(path: Path) -> bytes:
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _MAX_BYTES:
            raise DamagedPackError(path, f"no file, or more than {_MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {path}", cause=error.strerror or str(error))


def _parse(kind: type[T], text: bytes, path: Path, version: str) -> T:
    try:
        value: Any = json.loads(text)
        found = value[version]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedPackError(path, f"no JSON object with {version}") from error
    if found != VERSION:
        cause = f"its format is {str(found)[:20]}, and this smalti reads {VERSION}"
        raise DataError(f"cannot read {path}", cause=cause, fix="prepare it again, or use another version of smalti")
    try:
        return from_json(kind, value, path.name)
    except (UsageError, RecursionError) as error:
        raise DamagedPackError(path, str(error)[:200]) from error
