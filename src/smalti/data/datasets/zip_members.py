"""The images in a zip archive, by its central directory; nothing is ever extracted.

A path such as `photos.zip/train` is the folder `train` in the archive, and `photos-{0..3}.zip/train` that of several.
"""

import os
import re
import stat
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smalti.core.errors import DataError
from smalti.data.datasets.data_files import LocalFiles, system_errors_named
from smalti.data.datasets.folder import IRREGULAR
from smalti.data.datasets.names import (
    NO_IMAGE,
    SYSTEM,
    LeftOut,
    PackedNames,
    PackedNamesBuilder,
    is_system,
    may_be_image,
)
from smalti.data.datasets.tar import expand
from smalti.data.datasets.tar_index import DUPLICATE, LEADS_OUT, TOO_LARGE
from smalti.data.datasets.tar_members import is_inside, plain
from smalti.data.decode import MAX_BYTES

PACKED = "packed by a method that is not read (stored and deflate are)"
_ZIP = re.compile(r"\.zip(?=/|$)", re.IGNORECASE)
_HEADER, _SIGNATURE = 30, b"PK\3\4"
_ENCRYPTED = 0x1
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


class ZipPlace(NamedTuple):
    """Archives, and a folder inside of them, empty for all that they have."""

    archives: tuple[Path, ...]
    inner: str


class ZipImages(NamedTuple):
    """The n images of an archive, arrays among them.

    Attributes:
        names: their paths.
        numbers: offset of the header, bytes in the archive, bytes, CRC-32 and method of each, int64, shape (n, 5).
    """

    names: PackedNames
    numbers: NDArray[np.int64]
    left_out: LeftOut

    def unpacked(self, file: FileIO, row: int) -> bytes:
        """The bytes of an image; a `ValueError` if they are not what the central directory says."""
        offset, packed, size, crc, method = self.numbers[row].tolist()
        file.seek(offset)
        header = file.read(_HEADER)
        if len(header) < _HEADER or not header.startswith(_SIGNATURE):
            raise ValueError("damaged: there is no member where the archive says")
        file.seek(offset + _HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28)))
        data = file.read(packed)
        if method == _DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise ValueError(f"damaged: {error}") from error
        if len(data) != size or zlib.crc32(data) != crc:
            raise ValueError("damaged: its bytes are not those of its check sum")
        return data


def zip_place(data: str) -> ZipPlace | None:
    """The archives that DATA names, if it names any; a folder called `x.zip` is a folder."""
    ends = [found.end() for found in _ZIP.finditer(data)]
    if not ends or Path(data).expanduser().is_dir():
        return None
    for end in ends:
        archive, inner = Path(data[:end]).expanduser(), data[end:].strip("/")
        if archive.is_file():
            return ZipPlace((archive,), inner)
        if "{" in data[:end]:
            archives = tuple(Path(file).expanduser() for file in expand(data[:end]))
            return ZipPlace(archives, inner) if any(map(Path.is_file, archives)) else None
    return None


def images_of(place: ZipPlace) -> tuple[LocalFiles, list[ZipImages]]:
    """The archives, and the images of each; a `DataError` if one of them is none, encrypted, or damaged."""
    files = LocalFiles(place.archives, "archive")
    return files, [_read(*files.version(number), name) for number, name in enumerate(files.names)]


def list_folder(place: ZipPlace, folder: Path) -> tuple[list[str], list[str]]:
    """The names of the images and of the sub-folders of a folder, whose path begins with that of the archives."""
    inner = zip_place(str(folder))
    path = inner.inner if inner is not None else ""
    files = LocalFiles(place.archives, "archive")
    parts = [_folders(*files.version(number), name).get(path) for number, name in enumerate(files.names)]
    found = [set[str]().union(*(part[kind] for part in parts if part is not None)) for kind in (0, 1)]
    return sorted(found[0]), sorted(found[1])


@lru_cache(maxsize=64)
def _folders(path: str, size: int, mtime_ns: int, name: str) -> dict[str, tuple[set[str], set[str]]]:
    """The names of images and sub-folders of each folder of an archive, by its path, empty for the outermost."""
    found = defaultdict[str, tuple[set[str], set[str]]](lambda: (set(), set()))
    images = _read(path, size, mtime_ns, name)
    for row in range(len(images.names)):
        folder, _, file = os.fsdecode(images.names[row]).rpartition("/")
        found[folder][0].add(file)
        while folder:
            outer, _, inner = folder.rpartition("/")
            found[outer][1].add(inner)
            folder = outer
    return dict(found)


@lru_cache(maxsize=64)
def _read(path: str, size: int, mtime_ns: int, name: str) -> ZipImages:
    """The images of an archive in the version that these numbers are of."""
    try:
        with system_errors_named(name), zipfile.ZipFile(path) as archive:
            return _images(archive.infolist(), name)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{name} is no zip archive", cause=str(error) or "damaged", fix="fetch it again") from error


def _images(members: list[zipfile.ZipInfo], archive: str) -> ZipImages:
    _require_apart(members, archive)
    left_out, found = LeftOut(), dict[bytes, zipfile.ZipInfo]()
    for member, name, reason in _named(members):
        if not reason and member.flag_bits & _ENCRYPTED:
            cause, fix = f"{member.filename} needs a password", "unpack it into a folder"
            raise DataError(f"{archive} is encrypted", cause=cause, fix=fix)
        reason = reason or (DUPLICATE if name in found else "")
        if reason:
            left_out.add(reason, name)
        else:
            found[name] = member
    names = PackedNamesBuilder()
    for name in found:
        names.add(name)
    rows = [(one.header_offset, one.compress_size, one.file_size, one.CRC, one.compress_type) for one in found.values()]
    return ZipImages(names.build(), np.array(rows, np.int64).reshape(-1, 5), left_out)


def _named(members: list[zipfile.ZipInfo]) -> Iterator[tuple[zipfile.ZipInfo, bytes, str]]:
    """Yield each file with its path, in which back-slashes of old programs are slashes, and why it is left out."""
    for member in members:
        if member.is_dir():
            continue
        raw = os.fsencode(member.filename.replace("\\", "/").encode(errors="replace"))
        if not is_inside(raw) or re.match(rb"[A-Za-z]:", raw):
            yield member, raw, LEADS_OUT
            continue
        name = plain(raw)
        mode = member.external_attr >> 16
        if any(is_system(part) for part in name.split(b"/")):
            yield member, name, SYSTEM
        elif not may_be_image(name):
            yield member, name, NO_IMAGE
        elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            yield member, name, IRREGULAR
        elif member.file_size > MAX_BYTES or member.compress_size > MAX_BYTES:
            yield member, name, TOO_LARGE
        else:
            yield member, name, "" if member.compress_type in (_STORED, _DEFLATED) else PACKED


def _require_apart(members: list[zipfile.ZipInfo], archive: str) -> None:
    """Refuse an archive in which members share bytes: a small file of which any amount can be unpacked."""
    places = np.array(sorted((one.header_offset, one.compress_size) for one in members), np.float64).reshape(-1, 2)
    if bool((places[:-1].sum(1) + _HEADER > places[1:, 0]).any()) or bool((places < 0).any()):
        raise DataError(f"{archive} is no sound zip archive", cause="its members overlap", fix="fetch it again")
