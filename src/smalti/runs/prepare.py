"""`smalti prepare`: resize a data set once and store it as tar shards, which are read fast from slow disks."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.core.config import require, setting
from smalti.core.files import require_place
from smalti.core.log import Log, printable
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.folder import FollowLinks
from smalti.data.datasets.labels import LABEL_SEPARATOR
from smalti.data.datasets.open import lasting, open_source
from smalti.data.datasets.prepared import Encoding, Settings
from smalti.data.write_shards import write_shards


@dataclass(frozen=True)
class Prepare:
    """Which images, and how they are stored. Images smaller than asked keep their size."""

    data: str
    """As for check: a folder, a list, tar shards, Parquet files, a data set of Hugging Face, or 'embedded'."""
    out: str = setting("", "the folder to write, or to go on with")
    side: int = setting(256, "pixels of the shorter side, at most")
    encoding: Encoding = setting("jpeg", "jpeg; raw: pixels without loss (.npy), for small images")
    quality: int = setting(90, "of a JPEG, 1 to 100")
    channels: int = setting(3, "1 grey, 3 RGB")
    limit: int | None = setting(None, "images at most, an even sample; none: all")
    max_bad_fraction: float = setting(0.01, "share of unreadable images above which it stops")
    follow_links: FollowLinks = setting("inside", "links of a folder: those that stay inside it, or all")
    root: str = setting("", "the folder that the paths of a list are relative to; empty: that of the list")
    label_separator: str = setting("auto", LABEL_SEPARATOR)

    def __post_init__(self) -> None:
        require(bool(self.out), "no folder to write", "use --out FOLDER")
        require(self.side >= 16, f"a side of {self.side} pixels", "use at least 16")
        require(1 <= self.quality <= 100, f"a quality of {self.quality}", "choose 1 to 100")
        require(self.channels in (1, 3), f"{self.channels} channels", "use 1 or 3")
        require(self.limit is None or self.limit >= 1, f"a limit of {self.limit} images", "use at least 1")
        require(0 <= self.max_bad_fraction <= 1, f"max_bad_fraction {self.max_bad_fraction}", "choose one in [0, 1]")


def main(config: Prepare) -> dict[str, Any]:
    """Write the shards, resume writing them, or verify that they are complete."""
    began, log = time.monotonic(), Log()
    require_place(Path(config.out).expanduser())
    source = open_source(
        config.data, config.channels, log, config.follow_links, root=config.root, label_separator=config.label_separator
    )
    _say(source, log)
    settings = Settings(
        data=lasting(config.data),
        source=source.kind,
        side=config.side,
        encoding=config.encoding,
        quality=config.quality if config.encoding == "jpeg" else None,
        channels=config.channels,
        limit=config.limit,
        length=len(source),
        fingerprint=source.fingerprint(),
    )
    about, written = write_shards(source, Path(config.out).expanduser(), settings, log, config.max_bad_fraction)
    size = sum(shard.bytes for shard in about.shards)
    result = {
        "out": config.out,
        "images": about.images,
        "classes": len(about.classes),
        "bytes": size,
        "bytes_per_image": size / about.images,
        "parts": len(about.shards),
        "written": written,
        "bad": about.unreadable,
        "seconds": time.monotonic() - began,
        "digest": about.digest,
    }
    print(describe(result))
    return result


def _say(source: ImageDataset, log: Log) -> None:
    for note in source.notes:
        log.say(f"note: {note}")
    if source.left_out.counts:
        log.say(f"left out: {source.left_out}")


def describe(result: dict[str, Any]) -> str:
    """The result as a line or two."""
    done = "prepared" if result["written"] else "is done already, nothing was written; every shard is whole"
    size = f"{result['bytes'] / 1e6:.1f} MB, {result['bytes_per_image'] / 1e3:.1f} kB an image"
    shards = "1 shard" if result["parts"] == 1 else f"{result['parts']} shards"
    counts = f"{result['images']} images in {shards}, {size}, {result['bad']} unreadable left out"
    return f"{printable(result['out'])} {done}\n{counts}, {result['seconds']:.1f} s\ndigest {result['digest']}"
