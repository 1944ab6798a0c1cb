"""Writing one shard: a tar archive under another name, which gets its own when it is whole, and then its index."""

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from smalti.core.errors import OutputError
from smalti.core.files import sha256, write_bytes
from smalti.data.datasets.labels import NONE
from smalti.data.datasets.listing import LeftOut, NamesBuilder
from smalti.data.datasets.prepared import VERSION, Header, Settings, ShardDigest, index_path, tar_path
from smalti.data.datasets.tar_index import ShardIndex
from smalti.data.datasets.tar_members import BLOCK
from smalti.data.record import Record

_BUFFER = 1 << 20
_END = bytes(2 * BLOCK)


class ShardWriter:
    """Takes images one by one; some 30 bytes and the name of each stay in memory."""

    def __init__(self, folder: Path, number: int, start: int, settings: Settings) -> None:
        self.path, self.index_path = tar_path(folder, number), index_path(folder, number)
        self.start, self.settings = start, settings
        self.unreadable: list[tuple[int, str, str]] = []
        self.size, self._digest = 0, hashlib.sha256()
        self._names, self._offsets, self._sizes, self._labels = NamesBuilder(), array("Q"), array("I"), array("i")
        self._temporary = self.path.with_name(f".{self.path.name}")
        with writing(self.path):
            self._temporary.unlink(missing_ok=True)
            self._file = open(self._temporary, "xb", buffering=_BUFFER)  # noqa: SIM115

    def add(self, position: int, record: Record) -> None:
        """Append the image at a position of DATA, and its label where it has one.

        Raises:
            OutputError: it cannot be written.
        """
        self._offsets.append(self.size + BLOCK)
        self._sizes.append(len(record.data))
        self._labels.append(record.label)
        self._names.add(os.fsencode(record.key))
        self._write(member(f"{position:09d}.{record.suffix}", record.data))
        if record.label != NONE:
            self._write(member(f"{position:09d}.cls", b"%d" % record.label))

    def refuse(self, position: int, path: str, reason: str) -> None:
        """Note that an image of DATA cannot be read."""
        self.unreadable.append((position, path, reason))

    def finish(self) -> Header:
        """Flush everything to the disk; the shard counts from now on.

        Raises:
            OutputError: it cannot be written.
        """
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
        """Remove what has not been finished."""
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
    """A file of a tar archive (ustar), the same bytes whenever and by whomever it is written.

    Args:
        name: at most 100 ASCII characters.
        data: less than 8 GiB.
    """
    owner = b"%07o\0%07o\0%07o\0" % (0o644, 0, 0)
    header = name.encode("ascii").ljust(100, b"\0") + owner + b"%011o\0%011o\0" % (len(data), 0) + b" " * 8 + b"0"
    header = (header.ljust(257, b"\0") + b"ustar\x0000").ljust(BLOCK, b"\0")
    header = header[:148] + b"%06o\0 " % sum(header) + header[156:]
    return header + data + bytes(-len(data) % BLOCK)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what cannot be written, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        fix = "what is whole stays; run the same command again when this is mended"
        raise OutputError(f"cannot write {path}", cause=error.strerror or str(error), fix=fix) from error
