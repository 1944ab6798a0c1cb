"""Indices of shards, kept in the user's cache folder: a line of JSON and plain arrays, nothing that could run."""

import contextlib
import functools
import json
import os
from pathlib import Path
from typing import Any

from smalti.core.errors import OutputError
from smalti.core.files import open_to_others, sha256, write_bytes
from smalti.core.log import Log
from smalti.data.datasets.listing import LeftOut
from smalti.data.datasets.tar_index import ShardIndex
from smalti.data.decode import EXTENSIONS

_VERSION = 1
_LEFT_OUT = ("counts", "first", "suffixes")
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
            return _load(header, body) if sha256(body) == header["sha256"] else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, index: ShardIndex) -> None:
        """Keep an index; a cache that cannot be written is done without."""
        body, left_out = index.body(), {name: dict(getattr(index.left_out, name)) for name in _LEFT_OUT}
        about = {"count": len(index.names), "label_names": list(index.label_names), "left_out": left_out}
        line = json.dumps(self.fingerprint | about | {"sha256": sha256(*body)}).encode() + b"\n"
        with contextlib.suppress(OutputError, OSError):
            make_cache_folder(self.file.parent)
            write_bytes(self.file, line, *body)


def _load(header: dict[str, Any], body: bytes) -> ShardIndex:
    left_out = LeftOut()
    for name in _LEFT_OUT:
        getattr(left_out, name).update(header["left_out"][name])
    return ShardIndex.of_body(body, int(header["count"]), tuple(header["label_names"]), left_out)
