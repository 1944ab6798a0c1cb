"""Writes one shard: encoded images in a tar archive, which gets its final name when complete, then its index."""

import hashlib
import json
import os
import tarfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from smalti.core.errors import DataError, OutputError
from smalti.core.files import sha256, write_bytes
from smalti.data import npy
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.labels import NONE
from smalti.data.datasets.names import LeftOut, PackedNamesBuilder
from smalti.data.datasets.prepared import VERSION, Header, Settings, ShardDigest, index_path, tar_path
from smalti.data.datasets.tar_index import ShardIndex
from smalti.data.datasets.tar_members import BLOCK
from smalti.data.formats import orientation

try:
    import simplejpeg  # type: ignore[import-untyped]
except ImportError:  # Pillow writes JPEG too, more slowly
    simplejpeg = None

_SUBSAMPLING = "420"  # at 256 pixels and quality 90: 36 dB; 4:4:4 has 38 dB, 25 % more bytes, takes half as long again
_MAX_JPEG = 65_500

_BUFFER = 1 << 20
_END = bytes(2 * BLOCK)


class Record(NamedTuple):
    """An image as stored in a shard."""

    data: bytes
    label: int
    key: str

    @property
    def suffix(self) -> str:
        return "npy" if self.data.startswith(npy.MAGIC) else "jpg"


def make_record(source: ImageDataset, position: int, settings: Settings) -> Record:
    """Read an image of a source, shrink it where it is larger than the settings allow (never enlarge), and encode it.

    A JPEG file that is upright and small enough is kept byte for byte, unless a value window changes its pixels:
    encoding it again could only lose quality.
    An image so small that its JPEG would be larger than its pixels is stored raw.

    Raises:
        DataError: it cannot be read or decoded, or is too long for a JPEG.
    """
    data = source.read(position)
    sample = source.decoded(position, data, settings.side)  # decoded in full, to verify what is stored
    if settings.encoding == "raw" or settings.channels not in (1, 3):
        return Record(npy.encode(sample.image), sample.label, sample.key)
    if source.window is None and _is_fit(data, settings):
        return Record(data, sample.label, sample.key)
    if max(sample.image.shape) > _MAX_JPEG:
        cause = f"{sample.image.shape[1]}x{sample.image.shape[0]} pixels: a JPEG has at most {_MAX_JPEG} a side"
        raise DataError(f"cannot store {source.name(position)}", cause=cause)
    smaller = min(encode_jpeg(sample.image, settings.quality or 0), npy.encode(sample.image), key=len)
    return Record(smaller, sample.label, sample.key)


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Encode pixels (H, W, channels), uint8, as JPEG: 4:2:0, or grey. The bytes depend on the installed library."""
    grey = pixels.shape[2] == 1
    if simplejpeg is not None:
        sampling = "Gray" if grey else _SUBSAMPLING
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "GRAY" if grey else "RGB", sampling))
    file = BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "jpeg", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def _is_fit(data: bytes, settings: Settings) -> bool:
    """Whether a file that has been decoded is a JPEG, small enough, upright and of no more channels than asked."""
    if not data.startswith(b"\xff\xd8\xff"):
        return False
    with JpegImageFile(BytesIO(data)) as image:
        fits = min(image.size) <= settings.side and image.mode in ("L", "RGB")[: settings.channels]
        return fits and orientation(image) == 1


class ShardWriter:
    """Appends images one by one; about 30 bytes and the name of each stay in memory."""

    def __init__(self, folder: Path, number: int, start: int, settings: Settings) -> None:
        self.path, self.index_path = tar_path(folder, number), index_path(folder, number)
        self.start, self.settings = start, settings
        self.unreadable: list[tuple[int, str, str]] = []
        self.size, self._digest = 0, hashlib.sha256()
        self._names, self._offsets, self._sizes, self._labels = PackedNamesBuilder(), array("Q"), array("I"), array("i")
        self._temporary = self.path.with_name(f".{self.path.name}")
        with writing(self.path):
            self._temporary.unlink(missing_ok=True)
            self._file = open(self._temporary, "xb", buffering=_BUFFER)  # noqa: SIM115

    def add(self, position: int, record: Record) -> None:
        """Append the image at a position of DATA, and its label where it has one."""
        self._offsets.append(self.size + BLOCK)
        self._sizes.append(len(record.data))
        self._labels.append(record.label)
        self._names.add(os.fsencode(record.key))
        self._write(member(f"{position:09d}.{record.suffix}", record.data))
        if record.label != NONE:
            self._write(member(f"{position:09d}.cls", b"%d" % record.label))

    def refuse(self, position: int, path: str, reason: str) -> None:
        """Record that an image of DATA cannot be read."""
        self.unreadable.append((position, path, reason))

    def finish(self) -> Header:
        """Flush everything to disk; the shard is complete from now on."""
        self._write(_END)
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
        numbers = (np.array(self._offsets, np.uint64), np.array(self._sizes, np.uint32))
        index = ShardIndex(self._names.build(), *numbers, np.array(self._labels, np.int32), (), LeftOut())
        body = index.body()
        shard = ShardDigest(len(self._sizes), self.size, self._digest.hexdigest(), sha256(*body))
        header = Header(VERSION, self.settings, self.start, shard, tuple(self.unreadable))
        write_bytes(self.index_path, json.dumps(asdict(header)).encode() + b"\n", *body)
        return header

    def discard(self) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._temporary.unlink()

    def _write(self, data: bytes) -> None:
        with writing(self.path):
            self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


def member(name: str, data: bytes) -> bytes:
    """A member of a tar archive (ustar), of less than 8 GiB; its bytes do not depend on the time or the user."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Report that `path` cannot be written, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        fix = "what is whole stays; run the same command again when this is mended"
        raise OutputError(f"cannot write {path}", cause=error.strerror or str(error), fix=fix) from error
