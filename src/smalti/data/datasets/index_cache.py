"""Indices of shards, kept in the user's cache folder: a line of JSON and plain arrays, nothing that could run."""

import contextlib
import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smalti.core.errors import OutputError
from smalti.core.files import open_to_others, sha256, write_bytes
from smalti.core.log import Log
from smalti.data.datasets.listing import LeftOut, Names
from smalti.data.datasets.tar_index import ShardIndex
from smalti.data.decode import EXTENSIONS

_VERSION = 1
_KINDS = ("<u8", "<u8", "<u4", "<i4")
"""Of the arrays in a file: where each name ends, where the image's bytes begin, how many there are, its label."""
_MAX_HEADER = 64 << 20


def cache_folder() -> Path:
    """Where indices are kept: `SMALTI_CACHE`, or the system's place for caches."""
    if own := os.environ.get("SMALTI_CACHE"):
        return Path(own).expanduser()
    place = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    # Without a home there is none: what is kept in a place that everybody knows could be anybody's.
    return Path(os.devnull if place.startswith("~") else place) / "smalti"


def make_cache_folder(folder: Path) -> None:
    """Make a folder of the cache; the cache itself is made for this user alone.

    Raises:
        OSError: it cannot be.
    """
    cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    _warn_once(cache_folder())


@functools.cache
def _warn_once(folder: Path) -> None:
    if who := open_to_others(folder):
        Log().say(f"warning: {who}, so what is kept there can be changed by others; set SMALTI_CACHE to your own")


class Slot:
    """The place of one shard's index. It counts only while path, size and time of change of the shard are the same."""

    def __init__(self, shard: Path, about: os.stat_result) -> None:
        path = os.path.realpath(shard)
        self.file = cache_folder() / "shards" / f"{sha256(os.fsencode(path))[:32]}.index"
        self.fingerprint = {
            "smalti_shard_index": _VERSION,
            "shard": path,
            "size": about.st_size,
            "mtime_ns": about.st_mtime_ns,
            "extensions": sorted(EXTENSIONS),
        }

    def load(self) -> ShardIndex | None:
        """The index, or None where there is none, a stale, a damaged or another user's one."""
        try:
            with open(self.file, "rb") as file:
                if hasattr(os, "geteuid") and os.fstat(file.fileno()).st_uid != os.geteuid():
                    return None
                header = json.loads(file.readline(_MAX_HEADER))
                if {key: header[key] for key in self.fingerprint} != self.fingerprint:
                    return None
                body = file.read()
            return _unpack(header, body) if sha256(body) == header["sha256"] else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, index: ShardIndex) -> None:
        """Keep an index; a cache that cannot be written is done without."""
        header, body = _pack(index)
        line = json.dumps(self.fingerprint | header).encode() + b"\n"
        with contextlib.suppress(OutputError, OSError):
            make_cache_folder(self.file.parent)
            write_bytes(self.file, line, *body)


def _pack(index: ShardIndex) -> tuple[dict[str, Any], list[memoryview]]:
    """Without copies: an index may be as large as all memory that reading it may take."""
    arrays: list[NDArray[Any]] = [index.names.ends, index.offsets, index.sizes, index.labels]
    plain = [array.astype(kind, copy=False) for kind, array in zip(_KINDS, arrays, strict=True) if len(array)]
    body = [array.data.cast("B") for array in plain]
    body.append(memoryview(index.names.joined))
    left_out = {name: dict(getattr(index.left_out, name)) for name in ("counts", "first", "suffixes")}
    header = {"count": len(index.names), "label_names": list(index.label_names), "left_out": left_out}
    return header | {"sha256": sha256(*body)}, body


def _unpack(header: dict[str, Any], body: bytes) -> ShardIndex:
    count, start, arrays = int(header["count"]), 0, []
    for kind in _KINDS:
        arrays.append(np.frombuffer(body, kind, count, start).astype(kind[1:], copy=False))
        start += arrays[-1].nbytes
    left_out = LeftOut()
    for name in ("counts", "first", "suffixes"):
        getattr(left_out, name).update(header["left_out"][name])
    ends, offsets, sizes, labels = arrays
    names = Names(memoryview(body)[start:], ends)
    return ShardIndex(names, offsets, sizes, labels, tuple(header["label_names"]), left_out)
