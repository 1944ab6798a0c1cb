"""`smalti prepare`: resize a data set once and store it as tar shards, which are read fast from slow disks."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smalti.core.config import require, setting
from smalti.core.files import require_place
from smalti.core.log import Log, printable
from smalti.core.ranks import is_rank0
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.open import ReadOptions, absolute_data
from smalti.data.datasets.prepared import Encoding, Settings
from smalti.data.load import Data
from smalti.data.values import AskedWindow, Window, require_channels, require_window
from smalti.data.write_shards import encode_for_rank0, write_shards
from smalti.distributed.collectives import from_rank0, require_same
from smalti.distributed.process_group import Ranks, process_group


@dataclass(frozen=True)
class Prepare(ReadOptions):
    """Which images, and how they are stored. Images smaller than asked keep their size."""

    data: str
    """As for check: a folder, a list, tar shards, Parquet files, a data set of Hugging Face, or 'embedded'."""
    out: str = setting("", "the folder to write, or to go on with")
    side: int = setting(256, "pixels of the shorter side, at most")
    encoding: Encoding = setting("jpeg", "jpeg; raw: pixels without loss (.npy), as all of other than 1 or 3 channels")
    quality: int = setting(90, "of a JPEG, 1 to 100")
    channels: int = setting(3, "1 grey, 3 RGB, or as many as the images have")
    limit: int | None = setting(None, "images at most, an even sample; none: all")
    max_bad_fraction: float = setting(0.01, "share of unreadable images above which it stops")
    window: AskedWindow = setting(None, "stored values that become black and white: MIN MAX, or auto; none: all")
    ranks: Ranks = Ranks()

    def __post_init__(self) -> None:
        require(bool(self.out), "no folder to write", "use --out FOLDER")
        require(self.side >= 16, f"a side of {self.side} pixels", "use at least 16")
        require(1 <= self.quality <= 100, f"a quality of {self.quality}", "choose 1 to 100")
        require_channels(self.channels)
        require_window(self.window, self.channels)
        require(self.limit is None or self.limit >= 1, f"a limit of {self.limit} images", "use at least 1")
        require(0 <= self.max_bad_fraction <= 1, f"max_bad_fraction {self.max_bad_fraction}", "choose one in [0, 1]")


def main(config: Prepare) -> dict[str, Any]:
    """Write the shards, resume writing them, or verify that they are complete."""
    log = Log()
    require_place(Path(config.out).expanduser())
    with process_group(config.ranks, "cpu"):
        data = Data.reading(config.data, config.channels, config, config.window).measured(log)
        source = data.source_with_notes(config.data, log)
        settings = _settings(config, source, data.known_window)
        require_same("data set", asdict(settings))
        if not is_rank0():
            encode_for_rank0(source, settings, log)
        result = from_rank0(lambda: _write(config, source, settings, log))
    if is_rank0():
        print(describe(result))
    return result


def _settings(config: Prepare, source: ImageDataset, window: Window | None) -> Settings:
    encoding = config.encoding if config.channels in (1, 3) else "raw"
    return Settings(
        data=absolute_data(config.data),
        source=source.kind,
        side=config.side,
        encoding=encoding,
        quality=config.quality if encoding == "jpeg" else None,
        channels=config.channels,
        limit=config.limit,
        length=len(source),
        fingerprint=source.fingerprint(),
        window=window,
    )


def _write(config: Prepare, source: ImageDataset, settings: Settings, log: Log) -> dict[str, Any]:
    began = time.monotonic()
    about, written = write_shards(source, Path(config.out).expanduser(), settings, log, config.max_bad_fraction)
    size = sum(shard.bytes for shard in about.shards)
    return {
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


def describe(result: dict[str, Any]) -> str:
    """The result as a line or two."""
    done = "prepared" if result["written"] else "is done already, nothing was written; every shard is whole"
    size = f"{result['bytes'] / 1e6:.1f} MB, {result['bytes_per_image'] / 1e3:.1f} kB an image"
    shards = "1 shard" if result["parts"] == 1 else f"{result['parts']} shards"
    counts = f"{result['images']} images in {shards}, {size}, {result['bad']} unreadable left out"
    return f"{printable(result['out'])} {done}\n{counts}, {result['seconds']:.1f} s\ndigest {result['digest']}"
