"""Writing one part of a pack: images into a file under another name, which gets its own when it is whole."""

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
from smalti.data.datasets.listing import NamesBuilder
from smalti.data.packs.files import Index, join_index
from smalti.data.packs.format import VERSION, Header, PackPart, Settings, bin_path, index_path
from smalti.data.packs.record import Record

_BUFFER = 1 << 20


class PartWriter:
    """Takes images one by one; some 30 bytes and the name of each stay in memory."""

    def __init__(self, folder: Path, number: int, start: int, settings: Settings) -> None:
        self.path, self.index_path = bin_path(folder, number), index_path(folder, number)
        self.start, self.settings = start, settings
        self.unreadable: list[tuple[int, str, str]] = []
        self.size, self._digest = 0, hashlib.sha256()
        self._names, self._ends, self._labels = NamesBuilder(), array("Q"), array("i")
        self._temporary = self.path.with_name(f".{self.path.name}")
        with writing(self.path):
            self._temporary.unlink(missing_ok=True)
            self._file = open(self._temporary, "xb", buffering=_BUFFER)  # noqa: SIM115

    def add(self, record: Record) -> None:
        """Append an image.

        Raises:
            OutputError: it cannot be written.
        """
        with writing(self.path):
            self._file.write(record.data)
        self._digest.update(record.data)
        self.size += len(record.data)
        self._ends.append(self.size)
        self._labels.append(record.label)
        self._names.add(os.fsencode(record.key))

    def refuse(self, position: int, path: str, reason: str) -> None:
        """Note that an image of the source cannot be read."""
        self.unreadable.append((position, path, reason))

    def finish(self) -> Header:
        """Flush everything to the disk; the part counts from now on.

        Raises:
            OutputError: it cannot be written.
        """
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
        index = Index(np.array(self._ends, np.uint64), np.array(self._labels, np.int32), self._names.build())
        body = join_index(index)
        part = PackPart(len(self._ends), self.size, self._digest.hexdigest(), sha256(body))
        header = Header(VERSION, self.settings, self.start, part, tuple(self.unreadable))
        write_bytes(self.index_path, json.dumps(asdict(header)).encode() + b"\n" + body)
        return header

    def discard(self) -> None:
        """Remove what has not been finished."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._temporary.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what cannot be written, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        fix = "what is whole stays; run the same command again when this is mended"
        raise OutputError(f"cannot write {path}", cause=error.strerror or str(error), fix=fix) from error
