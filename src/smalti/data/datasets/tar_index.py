"""The index of one tar shard: which images it holds and where their bytes are; kept in the user's cache folder."""

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
from smalti.data.decode import EXTENSIONS, MAX_BYTES

DUPLICATE, LEADS_OUT, SECOND = "name used before", "path out of the archive", "further image of a sample"
TOO_LARGE, BAD_LABEL, DAMAGED = "too large", "label that cannot be read", "damaged archive"
ROW_BYTES = 24
"""Of an image in the arrays of an index."""

_KINDS = ("<u8", "<u8", "<u4", "<i4")
"""Of these arrays: where each name ends, where the image's bytes begin, how many there are, its label."""
_VERSION = 1
"""Of the files in which indices are kept."""

_LEFT_OUT = ("counts", "first", "suffixes")
_MAX_HEADER = 64 << 20
_LABEL = b"cls"
_MAX_LABEL = 1000
_MAX_GROUP = 64
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}


@dataclass(frozen=True)
class ShardIndex:
    """The images of one shard: names, where their bytes are, and labels as numbers into `label_names`."""

    names: Names
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint32]
    labels: NDArray[np.int32]
    label_names: tuple[str, ...]
    left_out: LeftOut

    def body(self) -> list[memoryview]:
        """The arrays and then the names, for a file; without copies, for an index may be as large as memory allows."""
        arrays: list[NDArray[Any]] = [self.names.ends, self.offsets, self.sizes, self.labels]
        plain = [array.astype(kind, copy=False) for kind, array in zip(_KINDS, arrays, strict=True) if len(array)]
        return [*(array.data.cast("B") for array in plain), memoryview(self.names.joined)]

    @staticmethod
    def of_body(body: bytes, count: int, label_names: tuple[str, ...], left_out: LeftOut) -> "ShardIndex":
        """The index of `count` images whose `body` was written; the arrays are views of it.

        Raises:
            ValueError: there is no room for so many images.
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
    """Read the headers of a shard, and the labels, which are files of their own (`.cls`).

    Raises:
        DataError: the file is compressed, or no tar archive at all.
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
            raise DataError(f"{path} is no tar archive", cause=str(error), fix="check --data") from error
        builder.left_out.add(DAMAGED, os.fsencode(str(error)))
    return builder.build()


def _samples(found: Iterator[Member], left_out: LeftOut) -> Iterator[list[Member]]:
    """The members of each sample: neighbours whose names are the same up to the first dot.

    What was read before the damage of an archive is handed on before the damage is.
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
    """Why a member is not used, whatever it holds."""
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
    """The name up to the first dot of its last part."""
    folder, slash, last = plain(member.name).rpartition(b"/")
    return folder + slash + last.split(b".", 1)[0]


def _suffix(name: bytes) -> bytes:
    """What follows the first dot: `jpg`, `cls`, `seg.png`."""
    return name.rpartition(b"/")[2].partition(b".")[2].lower()


class _Builder:
    """Collects the images of a shard sample by sample."""

    def __init__(self, file: BufferedIOBase) -> None:
        self.file, self.left_out, self.labels = file, LeftOut(), Labels()
        self.names, self.offsets, self.sizes = NamesBuilder(), array("Q"), array("I")

    def add(self, sample: list[Member]) -> None:
        """Take the images of a sample; where one is called like the sample itself, `a.seg.png` is no image of it."""
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
        """The index, of each name the first."""
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
    """Positions of the names that no earlier one equals, in order; 16 bytes a name."""
    hashes = np.fromiter((hash(names[position]) for position in range(len(names))), np.int64, len(names))
    return np.sort(np.unique(hashes, return_index=True)[1])


def load_index(version: FileVersion) -> ShardIndex | None:
    """The index that was kept of a shard; None where there is none, a stale, a damaged or another user's one.

    It is a line of JSON and then `ShardIndex.body`, nothing that could run.
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
    """Keep the index of a shard; a cache that cannot be written is done without."""
    body, left_out = index.body(), {name: dict(getattr(index.left_out, name)) for name in _LEFT_OUT}
    about = {"count": len(index.names), "label_names": list(index.label_names), "left_out": left_out}
    line = json.dumps(_identity(version) | about | {"sha256": sha256(*body)}).encode() + b"\n"
    with contextlib.suppress(OutputError, OSError):
        make_cache_folder(_slot(version).parent)
        write_bytes(_slot(version), line, *body)


def _slot(version: FileVersion) -> Path:
    return cache_folder() / "shards" / f"{sha256(os.fsencode(version.path))[:32]}.index"


def _identity(version: FileVersion) -> dict[str, Any]:
    """What must be the same for a kept index to count."""
    about = {"shard": version.path, "size": version.size, "mtime_ns": version.mtime_ns}
    return {"smalti_shard_index": _VERSION, **about, "extensions": sorted(EXTENSIONS)}
