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

from smalti.core.config import from_json, to_json
from smalti.core.errors import DataError, OutputError, UsageError
from smalti.core.files import sha256, write_bytes
from smalti.core.stored import open_stored, parse_json
from smalti.data.datasets.data_files import FileVersion, cache_folder, make_cache_folder
from smalti.data.datasets.labels import NONE, SEPARATOR, Labels
from smalti.data.datasets.names import (
    NO_IMAGE,
    SYSTEM,
    LeftOut,
    PackedNames,
    PackedNamesBuilder,
    has_array_suffix,
    has_image_suffix,
    is_system,
    may_be_image,
)
from smalti.data.datasets.tar_members import DamagedTarError, Member, is_inside, members, plain
from smalti.data.decode import MAX_BYTES
from smalti.data.formats import ARRAYS, EXTENSIONS

DUPLICATE, LEADS_OUT, SECOND = "name used before", "path out of the archive", "further image of a sample"
TOO_LARGE, BAD_LABEL, DAMAGED = "too large", "label that cannot be read", "damaged archive"
ROW_BYTES = 24
"""Bytes per image in the arrays of an index."""

_KINDS = ("<u8", "<u8", "<u4", "<i4")
"""The dtypes of these arrays: end of each name, offset of the image's bytes, their number, label."""
_VERSION = 2
"""The format version of cached index files."""

_MAX_HEADER = 64 << 20
_LABEL, _JSON = b"cls", b"json"
_LABEL_KEYS = ("label", "cls", "class")
_MAX_LABEL, _MAX_JSON = 1000, 1 << 16
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

    names: PackedNames
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
    def of_body(body: bytes, count: int, label_names: tuple[str, ...], left_out: LeftOut, length: int) -> "ShardIndex":
        """The inverse of `body`, for an index of `count` images; the arrays are views of `body`.

        Args:
            length: bytes of the shard.

        Raises:
            ValueError: `body` is too short for `count` images, or they are not in the shard.
        """
        if not 0 <= count * ROW_BYTES <= len(body):
            raise ValueError(f"no room for {count} images")
        start, arrays = 0, list[NDArray[Any]]()
        for kind in _KINDS:
            arrays.append(np.frombuffer(body, kind, count, start).astype(kind[1:], copy=False))
            start += arrays[-1].nbytes
        ends, offsets, sizes, labels = arrays
        if not (_divides(ends, len(body) - start) and _is_inside(offsets, sizes, length)):
            raise ValueError("images or names lie outside the shard")
        return ShardIndex(PackedNames(memoryview(body)[start:], ends), offsets, sizes, labels, label_names, left_out)


def _divides(ends: NDArray[np.uint64], length: int) -> bool:
    """Whether `ends`, shape (n,), are non-decreasing offsets of which the last is `length`."""
    return int(ends[-1] if len(ends) else 0) == length and bool((ends[1:] >= ends[:-1]).all())


def _is_inside(offsets: NDArray[np.uint64], sizes: NDArray[np.uint32], length: int) -> bool:
    """Whether the bytes of every image are within the first `length` bytes."""
    if not len(offsets):
        return length >= 0
    return int(offsets.max()) <= length < 1 << 63 and bool((sizes <= length - offsets).all())


@dataclass(frozen=True)
class _Identity:
    """What must be the same for a cached index to be used: the format, the shard, and what counts as an image."""

    version: int
    shard: str
    size: int
    mtime_ns: int
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class _Header:
    """The line of JSON in a cached index; of members left out, the reason, their number and the first."""

    of: _Identity
    count: int
    label_names: tuple[str, ...]
    left_out: tuple[tuple[str, int, str], ...]
    suffixes: tuple[tuple[str, int], ...]


def build_index(file: BufferedIOBase, length: int, name: str) -> ShardIndex:
    """Build an index from the headers of a shard and its label files (`.cls`, or `label` in `.json`).

    Raises:
        DataError: the file is compressed, or not a tar archive.
    """
    start = file.read(6)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            cause = f"compressed ({kind}): it cannot be read from the middle, and images are compressed already"
            raise DataError(f"{name} is no plain tar archive", cause=cause, fix="unpack it to a plain .tar")
    builder = _Builder(file)
    try:
        for sample in _samples(members(file, length), builder.left_out):
            builder.add(sample)
    except DamagedTarError as error:
        if str(error).startswith(("no header at byte 0", "it ends within a header at byte 0")):
            raise DataError(f"{name} is no tar archive", cause=str(error), fix="check the path") from error
        builder.left_out.add(DAMAGED, os.fsencode(str(error)))
    return builder.build()


def _samples(found: Iterator[Member], left_out: LeftOut) -> Iterator[list[Member]]:
    """Yield the members of each sample: consecutive members whose names are equal up to the first dot.

    In a damaged archive, the samples before the damage are yielded before the error is raised.
    """
    sample: list[Member] = []
    damage: DamagedTarError | None = None
    try:
        for member in found:
            if reason := _odd(member):
                left_out.add(reason, member.name)
                continue
            if sample and (_key(member) != _key(sample[0]) or len(sample) == _MAX_GROUP):
                yield sample
                sample = []
            sample.append(member._replace(name=plain(member.name)))
    except DamagedTarError as error:
        damage = error
    if sample:
        yield sample
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
    if _suffix(name) in (_LABEL, _JSON):
        return ""
    if not may_be_image(name):
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
        self.names, self.offsets, self.sizes = PackedNamesBuilder(), array("Q"), array("I")

    def add(self, sample: list[Member]) -> None:
        """Add the images of a sample. If it has an image such as `a.png`, others such as `a.seg.png` are skipped.

        Arrays are images in samples without others.
        """
        images = [member for member in sample if has_image_suffix(member.name)]
        arrays = [member for member in sample if has_array_suffix(member.name)]
        if images:
            for member in arrays:
                self.left_out.add(NO_IMAGE, member.name)
        images = images or arrays
        if not images:
            for member in sample:
                if _suffix(member.name) == _JSON:
                    self.left_out.add(NO_IMAGE, member.name)
        plainly = [member for member in images if b"." not in _suffix(member.name)]
        for image in images:
            if plainly and image is not plainly[0]:
                self.left_out.add(SECOND, image.name)
                continue
            self.names.add(image.name)
            self.offsets.append(image.offset)
            self.sizes.append(image.size)
            self._add_label({_suffix(member.name): member for member in reversed(sample)})

    def _add_label(self, members: dict[bytes, Member]) -> None:
        """Append the label of an image, from the members of its sample by suffix."""
        member, most = members.get(_LABEL), _MAX_LABEL
        if member is None:
            member, most = members.get(_JSON), _MAX_JSON
        if member is None:
            return self.labels.add_none()
        self.file.seek(member.offset)
        text = self.file.read(min(member.size, most)).decode(errors="replace").strip()
        with contextlib.suppress(ValueError, RecursionError):
            label = text if most == _MAX_LABEL else _json_label(text)
            if label is None:
                return self.labels.add_none()
            if label and member.size <= most:
                return self.labels.add(label)
        self.left_out.add(BAD_LABEL, member.name)
        return self.labels.add_none()

    def build(self) -> ShardIndex:
        """The index; of images with equal names, only the first is kept."""
        names = self.names.build()
        offsets, sizes = np.array(self.offsets, np.uint64), np.array(self.sizes, np.uint32)
        labels = np.array(self.labels.ids, np.int32)
        firsts = _first_of_each(names)
        if len(firsts) < len(names):
            kept, is_first = PackedNamesBuilder(), np.zeros(len(names), np.bool_)
            is_first[firsts] = True
            for position, first in enumerate(is_first):
                if first:
                    kept.add(names[position])
                else:
                    self.left_out.add(DUPLICATE, names[position])
            names, offsets, sizes, labels = kept.build(), offsets[firsts], sizes[firsts], labels[firsts]
        return ShardIndex(names, offsets, sizes, labels, tuple(self.labels.table), self.left_out)


def _json_label(text: str) -> str | None:
    """The label in the JSON object of a sample, several joined by `|`; None if it has none, an error if it is none."""
    about = json.loads(text)
    found = next((about[key] for key in _LABEL_KEYS if key in about), None) if isinstance(about, dict) else None
    texts = [str(one) for one in (found if isinstance(found, list) else [found]) if isinstance(one, str | int)]
    return SEPARATOR.join(texts) or None


def _first_of_each(names: PackedNames) -> NDArray[np.int64]:
    """Positions of the first occurrence of each name, ascending, int64, shape (m,); uses 16 bytes per name."""
    hashes = np.fromiter((hash(names[position]) for position in range(len(names))), np.int64, len(names))
    return np.sort(np.unique(hashes, return_index=True)[1])


def load_index(version: FileVersion) -> ShardIndex | None:
    """The cached index of a shard; None if it is missing, stale, damaged or owned by another user.

    The file is the digest of all that follows, a line of JSON (`_Header`) and then `ShardIndex.body`; it contains
    nothing executable.
    """
    try:
        with open_stored(_slot(version)) as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            digest, line, body = file.readline(_MAX_HEADER), file.readline(_MAX_HEADER), file.read()
        if sha256(line, body).encode() + b"\n" != digest:
            return None
        header = from_json(_Header, parse_json(line))
        if header.of != _identity(version):
            return None
        left_out = LeftOut()
        for reason, count, first in header.left_out:
            left_out.counts[reason], left_out.first[reason] = count, first
        left_out.suffixes.update(dict(header.suffixes))
        index = ShardIndex.of_body(body, header.count, header.label_names, left_out, version.size)
        return index if bool(((index.labels >= NONE) & (index.labels < len(header.label_names))).all()) else None
    except (OSError, ValueError, UsageError):
        return None


def save_index(version: FileVersion, index: ShardIndex) -> None:
    """Write the index of a shard to the cache; if the cache cannot be written, nothing is saved."""
    body, skipped = index.body(), index.left_out
    left_out = tuple((reason, count, skipped.first[reason]) for reason, count in skipped.counts.items())
    suffixes = tuple(skipped.suffixes.items())
    header = _Header(_identity(version), len(index.names), index.label_names, left_out, suffixes)
    line = json.dumps(to_json(header)).encode() + b"\n"
    with contextlib.suppress(OutputError, OSError):
        make_cache_folder(_slot(version).parent)
        write_bytes(_slot(version), sha256(line, *body).encode() + b"\n", line, *body)


def _slot(version: FileVersion) -> Path:
    return cache_folder() / "shards" / f"{sha256(os.fsencode(version.path))[:32]}.index"


def _identity(version: FileVersion) -> _Identity:
    return _Identity(_VERSION, *version, tuple(sorted(EXTENSIONS | ARRAYS)))
