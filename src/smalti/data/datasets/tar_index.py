"""The index of one tar shard: its images and the offsets of their bytes; kept in the user's cache folder."""

import contextlib
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smalti.core.errors import DataError, OutputError
from smalti.core.files import sha256, write_bytes
from smalti.data.datasets.data_files import FileVersion, cache_folder, make_cache_folder
from smalti.data.datasets.names import (
    NO_IMAGE,
    SYSTEM,
    Labels,
    LeftOut,
    Names,
    NamesBuilder,
    has_image_suffix,
    is_system,
)
from smalti.data.datasets.tar_members import DamagedTarError, Member, is_inside, members, plain
from smalti.data.decode import MAX_BYTES
from smalti.data.formats import EXTENSIONS

DUPLICATE, LEADS_OUT, SECOND = "name used before", "path out of the archive", "further image of a sample"
TOO_LARGE, BAD_LABEL, DAMAGED = "too large", "label that cannot be read", "damaged archive"
ROW_BYTES = 24
"""Bytes per image in the arrays of an index."""

_KINDS = ("<u8", "<u8", "<u4", "<i4")
"""The dtypes of these arrays: end of each name, offset of the image's bytes, their number, label."""
_VERSION = 1
"""The format version of cached index files."""

_LEFT_OUT = ("counts", "first", "suffixes")
_MAX_HEADER = 64 << 20
_LABEL = b"cls"
_MAX_LABEL = 1000
_MAX_GROUP = 64
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}


@dataclass(frozen=True)
class ShardIndex:
    """The n images of one shard.

    Attributes:
        names: the names of the images.
        offsets: the offset of each image's bytes in the shard, uint64, shape (n,).
        sizes: the number of bytes of each image, uint32, shape (n,).
        labels: for each image an index into `label_names`, or -1 for none; int32, shape (n,).
        label_names: the different labels.
        left_out: the members that were skipped.
    """

    names: Names
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint32]
    labels: NDArray[np.int32]
    label_names: tuple[str, ...]
    left_out: LeftOut

    def body(self) -> list[memoryview]:
        """The bytes of the arrays and then of the names, to be written to a file; without copies, to save memory."""
        arrays: list[NDArray[Any]] = [self.names.ends, self.offsets, self.sizes, self.labels]
        plain = [array.astype(kind, copy=False) for kind, array in zip(_KINDS, arrays, strict=True) if len(array)]
        return [*(array.data.cast("B") for array in plain), memoryview(self.names.joined)]

    @staticmethod
    def of_body(body: bytes, count: int, label_names: tuple[str, ...], left_out: LeftOut) -> "ShardIndex":
        """The inverse of `body`, for an index of `count` images; the arrays are views of `body`.

        Raises:
            ValueError: `body` is too short for `count` images.
        """
        if not 0 <= count * ROW_BYTES <= len(body):
            raise ValueError(f"no room for {count} images")
        start, arrays = 0, list[NDArray[Any]]()
        for kind in _KINDS:
            arrays.append(np.frombuffer(body, kind, count, start).astype(kind[1:], copy=False))
            start += arrays[-1].nbytes
        ends, offsets, sizes, labels = arrays
        return ShardIndex(Names(memoryview(body)[start:], ends), offsets, sizes, labels, label_names, left_out)


def build_index(file: BufferedIOBase, length: int, path: Path) -> ShardIndex:
    """Build an index from the headers of a shard and its label files (`.cls`).

    Args:
        file: the shard, opened for reading.
        length: its size in bytes.
        path: its path, for messages.

    Raises:
        DataError: the file is compressed, or not a tar archive.
    """
    start = file.read(6)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            cause = f"compressed ({kind}): it cannot be read from the middle, and images are compressed already"
            raise DataError(f"{path} is no plain tar archive", cause=cause, fix="unpack it to a plain .tar")
    builder = _Builder(file)
    try:
        for sample in _samples(members(file, length), builder.left_out):
            builder.add(sample)
    except DamagedTarError as error:
        if str(error).startswith(("no header at byte 0", "it ends within a header at byte 0")):
            raise DataError(f"{path} is no tar archive", cause=str(error), fix="check the path") from error
        builder.left_out.add(DAMAGED, os.fsencode(str(error)))
    return builder.build()


def _samples(found: Iterator[Member], left_out: LeftOut) -> Iterator[list[Member]]:
    """Yield the members of each sample: consecutive members whose names are equal up to the first dot.

    In a damaged archive, the samples before the damage are yielded before the error is raised.
    """
    sample: list[Member] = []
    damage: DamagedTarError | None = None
    while True:
        try:
            member = next(found, None)
        except DamagedTarError as error:
            member, damage = None, error
        if member is not None and (reason := _odd(member)):
            left_out.add(reason, member.name)
            continue
        if sample and (member is None or _key(member) != _key(sample[0]) or len(sample) == _MAX_GROUP):
            yield sample
            sample = []
        if member is None:
            break
        sample.append(member._replace(name=plain(member.name)))
    if damage is not None:
        raise damage


def _odd(member: Member) -> str:
    """The reason why a member is skipped; empty if it is used."""
    if member.left_out:
        return member.left_out
    if not is_inside(member.name):
        return LEADS_OUT
    name = plain(member.name)
    if any(is_system(part) for part in name.split(b"/")):
        return SYSTEM
    if _suffix(name) == _LABEL:
        return ""
    if not has_image_suffix(name):
        return NO_IMAGE
    return TOO_LARGE if member.size > MAX_BYTES else ""


def _key(member: Member) -> bytes:
    """The key of a member's sample: its path up to the first dot of the file name."""
    folder, slash, last = plain(member.name).rpartition(b"/")
    return folder + slash + last.split(b".", 1)[0]


def _suffix(name: bytes) -> bytes:
    """The part of the file name after the first dot, in lower case: `jpg`, `cls`, `seg.png`."""
    return name.rpartition(b"/")[2].partition(b".")[2].lower()


class _Builder:
    """Collects the images of a shard sample by sample."""

    def __init__(self, file: BufferedIOBase) -> None:
        self.file, self.left_out, self.labels = file, LeftOut(), Labels()
        self.names, self.offsets, self.sizes = NamesBuilder(), array("Q"), array("I")

    def add(self, sample: list[Member]) -> None:
        """Add the images of a sample. If it has an image such as `a.png`, others such as `a.seg.png` are skipped."""
        images = [member for member in sample if has_image_suffix(member.name)]
        plainly = [member for member in images if b"." not in _suffix(member.name)]
        for image in images:
            if plainly and image is not plainly[0]:
                self.left_out.add(SECOND, image.name)
                continue
            self.names.add(image.name)
            self.offsets.append(image.offset)
            self.sizes.append(image.size)
            self._add_label(next((member for member in sample if _suffix(member.name) == _LABEL), None))

    def _add_label(self, member: Member | None) -> None:
        if member is not None:
            self.file.seek(member.offset)
            text = self.file.read(min(member.size, _MAX_LABEL)).decode(errors="replace").strip()
            with contextlib.suppress(ValueError):
                if text and member.size <= _MAX_LABEL:
                    return self.labels.add(text)
            self.left_out.add(BAD_LABEL, member.name)
        return self.labels.add_none()

    def build(self) -> ShardIndex:
        """The index; of images with equal names, only the first is kept."""
        names = self.names.build()
        offsets, sizes = np.array(self.offsets, np.uint64), np.array(self.sizes, np.uint32)
        labels = np.array(self.labels.ids, np.int32)
        firsts = _first_of_each(names)
        if len(firsts) < len(names):
            kept, is_first = NamesBuilder(), np.zeros(len(names), np.bool_)
            is_first[firsts] = True
            for position, first in enumerate(is_first):
                if first:
                    kept.add(names[position])
                else:
                    self.left_out.add(DUPLICATE, names[position])
            names, offsets, sizes, labels = kept.build(), offsets[firsts], sizes[firsts], labels[firsts]
        return ShardIndex(names, offsets, sizes, labels, tuple(self.labels.table), self.left_out)


def _first_of_each(names: Names) -> NDArray[np.int64]:
    """Positions of the first occurrence of each name, ascending, int64, shape (m,); uses 16 bytes per name."""
    hashes = np.fromiter((hash(names[position]) for position in range(len(names))), np.int64, len(names))
    return np.sort(np.unique(hashes, return_index=True)[1])


def load_index(version: FileVersion) -> ShardIndex | None:
    """The cached index of a shard; None if it is missing, stale, damaged or owned by another user.

    The file is a line of JSON and then `ShardIndex.body`; it contains nothing executable.
    """
    try:
        with open(_slot(version), "rb") as file:
            if hasattr(os, "geteuid") and os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            header = json.loads(file.readline(_MAX_HEADER))
            if {key: header[key] for key in _identity(version)} != _identity(version):
                return None
            body = file.read()
        if sha256(body) != header["sha256"]:
            return None
        left_out = LeftOut()
        for name in _LEFT_OUT:
            getattr(left_out, name).update(header["left_out"][name])
        return ShardIndex.of_body(body, int(header["count"]), tuple(header["label_names"]), left_out)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save_index(version: FileVersion, index: ShardIndex) -> None:
    """Write the index of a shard to the cache; if the cache cannot be written, nothing is saved."""
    body, left_out = index.body(), {name: dict(getattr(index.left_out, name)) for name in _LEFT_OUT}
    about = {"count": len(index.names), "label_names": list(index.label_names), "left_out": left_out}
    line = json.dumps(_identity(version) | about | {"sha256": sha256(*body)}).encode() + b"\n"
    with contextlib.suppress(OutputError, OSError):
        make_cache_folder(_slot(version).parent)
        write_bytes(_slot(version), line, *body)


def _slot(version: FileVersion) -> Path:
    return cache_folder() / "shards" / f"{sha256(os.fsencode(version.path))[:32]}.index"


def _identity(version: FileVersion) -> dict[str, Any]:
    """The header fields that must match for a cached index to be valid."""
    about = {"shard": version.path, "size": version.size, "mtime_ns": version.mtime_ns}
    return {"smalti_shard_index": _VERSION, **about, "extensions": sorted(EXTENSIONS)}
