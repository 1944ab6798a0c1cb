"""The shards that `smalti prepare` writes: a dataset of images shrunk once, as WebDataset archives with indices.

```
OUT/shard-00000.tar     for each image KEY.jpg or KEY.npy (uint8, H x W x C), and KEY.cls with its class number if
                        there are classes; KEY is the number of the image in DATA
    shard-00000.index   a line of JSON (`Header`), then the output of `ShardIndex.body`: for the shard's n images,
                        little-endian and without gaps:
                          n uint64  the offset in the names at which each name ends
                          n uint64  the offset of the image's bytes in the .tar
                          n uint32  the number of bytes
                          n int32   labels: positions in `classes` of prepared.json, or -1
                          the names in DATA, UTF-8, concatenated; bytes of a name that are not UTF-8 are kept
    shard-00001.tar ...
    prepared.json       `About`: settings, number of images, classes, size and digests of every shard
    bad_files.jsonl     the images that could not be read, one object with path and reason per line; only if any
```

An index is written after its .tar, and prepared.json after everything else, each atomically: a shard is valid only if
its index exists and matches, and the dataset only if prepared.json does. Digests are SHA-256 in hexadecimal.
"""

import hashlib
import json
import os
import shlex
import stat
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from smalti.core.config import from_json
from smalti.core.errors import DataError, UsageError
from smalti.core.files import sha256
from smalti.core.log import Log
from smalti.core.stored import open_stored, parse_object, read_stored
from smalti.data.datasets.data_files import LocalFiles, system_errors_named
from smalti.data.datasets.labels import NONE, missing_note
from smalti.data.datasets.names import LeftOut
from smalti.data.datasets.tar import IndexedTars
from smalti.data.datasets.tar_index import ShardIndex
from smalti.data.values import Window

T = TypeVar("T")
Encoding: TypeAlias = Literal["jpeg", "raw"]

VERSION = 1
ABOUT, BAD_FILES = "prepared.json", "bad_files.jsonl"
UNREADABLE = "unreadable when it was prepared"
_PACK = "pack.json"  # of earlier versions
_MAX_BYTES = 1 << 30


class DamagedShardError(DataError):
    """A file of a prepared dataset differs from what was written; it must be written again."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path} is damaged", cause=cause, fix="run the same smalti prepare again")


@dataclass(frozen=True)
class Settings:
    """What is prepared and how; an interrupted run can be continued only with the same settings.

    Attributes:
        data: DATA as an absolute path.
        source: the kind of DATA, in a word.
        side: the maximum of the shorter side in pixels.
        quality: the JPEG quality, 1 to 100; None if pixels are stored.
        channels: 1 (grey), 3 (RGB), or of all channels.
        limit: the maximum number of images, evenly sampled.
        length: the number of images in DATA.
        fingerprint: a digest of their names, labels and, where cheap to find out, file sizes.
        window: the stored values that became black and white; None: all that a format has.
    """

    data: str
    source: str
    side: int
    encoding: Encoding
    quality: int | None
    channels: int
    limit: int | None
    length: int
    fingerprint: str
    window: Window | None = None

    def require(self, wanted: "Settings", folder: Path) -> None:
        """Refuse with a `UsageError` to continue `folder`, which was started with these settings, with other ones."""
        for name in (field.name for field in fields(self)):
            was, now = getattr(self, name), getattr(wanted, name)
            if was != now and name in ("length", "fingerprint"):
                cause = f"files or labels in {self.data} have changed: {self.length} images then, {wanted.length} now"
                raise UsageError(f"{folder} was prepared from other images", cause=cause, fix="use another --out")
            if was != now:
                fix = f"use the same {name}, or another --out"
                raise UsageError(f"{folder} was prepared with {name} {was}, now {now}", fix=fix)


@dataclass(frozen=True)
class ShardDigest:
    """The entry of a shard in prepared.json; its index in the list is the number in the shard's file names."""

    images: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Header:
    """The first line of an index.

    Attributes:
        settings: those of the whole dataset.
        start: the number of images of DATA processed in earlier shards, unreadable ones included.
        shard: the number of images in this shard, size and digest of its .tar, the digest of what follows this line.
        unreadable: position in DATA, path and reason of each image that could not be read.
    """

    smalti_shard: int
    settings: Settings
    start: int
    shard: ShardDigest
    unreadable: tuple[tuple[int, str, str], ...]

    @property
    def stop(self) -> int:
        """The number of images of DATA processed in this and earlier shards, unreadable ones included."""
        return self.start + self.shard.images + len(self.unreadable)


@dataclass(frozen=True)
class About:
    """The content of prepared.json. `digest` covers images, names, labels and classes, not where they are stored."""

    smalti_prepared: int
    smalti: str
    digest: str
    settings: Settings
    images: int
    unreadable: int
    classes: tuple[str, ...]
    shards: tuple[ShardDigest, ...]


class Prepared(IndexedTars):
    """The images of a prepared dataset, in the order of DATA, with their names and labels in DATA.

    Opening reads the indices and checks file sizes; about 30 bytes per image and its name stay in memory.
    """

    kind = "prepared"

    def __init__(self, folder: Path, channels: int) -> None:
        self.folder, self.about = folder, read_about(folder)
        indices, start = list[ShardIndex](), 0
        for number, shard in enumerate(self.about.shards):
            header, index = read_index(index_path(folder, number))
            if (header.shard, header.settings, header.start) != (shard, self.about.settings, start):
                raise DamagedShardError(index_path(folder, number), f"it is not the one that {ABOUT} speaks of")
            check_size(tar_path(folder, number), shard)
            indices.append(index)
            start = header.stop
        super().__init__(LocalFiles([tar_path(folder, n) for n in range(len(indices))]), indices, channels)
        if not len(self):
            raise DamagedShardError(folder / ABOUT, "it has no images")
        for index in indices:
            self.left_out.merge(index.left_out)
        self.classes, self.digest = self.about.classes, self.about.digest
        self.made_window = self.about.settings.window
        if self.classes:
            self.labels = np.concatenate([index.labels for index in indices])
            if not NONE <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
                raise DamagedShardError(folder / ABOUT, f"labels lie outside the {len(self.classes)} classes")
            self.notes = missing_note(self.labels)
        if self.about.settings.channels == 1 and channels == 3:
            self.notes += ("what was prepared is grey",)

    def key(self, index: int) -> str:
        shard, row = self._place(index)
        return os.fsdecode(self._indices[shard].names[row])

    def fingerprint(self) -> str:
        return self.digest

    def verify(self, log: Log) -> None:
        with log.progress("verify", len(self.about.shards)) as bar:
            for number, shard in enumerate(self.about.shards):
                check_digest(tar_path(self.folder, number), shard)
                bar.update(number + 1)


def is_prepared(folder: Path) -> bool:
    """Whether `smalti prepare` has written this folder, or started to."""
    return (folder / ABOUT).is_file() or index_path(folder, 0).is_file()


def prepared_window(folder: Path) -> Window | None:
    """The value window that the images of a folder were prepared with; None without one, or for other images."""
    return read_about(folder).settings.window if is_prepared(folder) else None


def refuse_pack(folder: Path) -> None:
    """Refuse a folder that an earlier version has prepared, with the command that prepares the same images."""
    if not (folder / _PACK).is_file() and not (folder / "part-00000.index").is_file():
        return
    words = ["smalti", "prepare", "DATA", "--out", f"{folder}-shards"]
    try:
        made = from_json(Settings, parse_object(_read(folder / _PACK))["settings"], _PACK)
        words[2] = made.data
        words += ["--side", str(made.side), "--encoding", made.encoding, "--channels", str(made.channels)]
        words += [] if made.quality is None else ["--quality", str(made.quality)]
        words += [] if made.limit is None else ["--limit", str(made.limit)]
    except (DataError, UsageError, ValueError, KeyError):
        pass  # the folder is refused even so
    cause = "an earlier smalti has written it, and this one reads and writes tar shards"
    raise DataError(f"{folder} is a pack", cause=cause, fix=f"prepare the images again: {shlex.join(words)}")


def tar_path(folder: Path, number: int) -> Path:
    """The path of the .tar of a shard."""
    return folder / f"shard-{number:05d}.tar"


def index_path(folder: Path, number: int) -> Path:
    """The path of the index of a shard."""
    return folder / f"shard-{number:05d}.index"


def digest_of(classes: tuple[str, ...], shards: tuple[ShardDigest, ...]) -> str:
    """The digest of the content of all shards."""
    return sha256(json.dumps([classes, [(shard.sha256, shard.index_sha256) for shard in shards]]).encode())


def read_about(folder: Path) -> About:
    """Read and check prepared.json; a `DataError` if it is missing, damaged, or of another version."""
    path = folder / ABOUT
    if not path.exists():
        cause, fix = f"it has no {ABOUT}", "run the same smalti prepare again"
        raise DataError(f"{folder} is not finished", cause=cause, fix=fix)
    about = _parse(About, _read(path), path, "smalti_prepared")
    if digest_of(about.classes, about.shards) != about.digest:
        raise DamagedShardError(path, "classes and shards differ from the digest")
    if about.images != sum(shard.images for shard in about.shards) or min(about.images, about.unreadable) < 0:
        raise DamagedShardError(path, "the number of images is not that of its shards")
    return about


def read_index(path: Path) -> tuple[Header, ShardIndex]:
    """Read and check the index of a shard.

    Raises:
        DamagedShardError: it is damaged, and may be written again.
        DataError: it cannot be read, or is of another version.
    """
    line, _, body = _read(path).partition(b"\n")
    header = _parse(Header, line, path, "smalti_shard")
    if sha256(body) != header.shard.index_sha256:
        raise DamagedShardError(path, "it differs from its digest")
    left_out = LeftOut()
    if header.unreadable:
        left_out.add(UNREADABLE, os.fsencode(header.unreadable[0][1]), len(header.unreadable))
    try:
        count = header.shard.images if header.start >= 0 else -1
        return header, ShardIndex.of_body(body, count, (), left_out, header.shard.bytes)
    except ValueError as error:
        raise DamagedShardError(path, str(error)) from error


def check_size(path: Path, shard: ShardDigest) -> None:
    """Check the size of a .tar without reading it: a `DamagedShardError` if it is another or there is no such file."""
    with system_errors_named(path):
        try:
            about = path.stat()
        except FileNotFoundError as error:
            raise DamagedShardError(path, "it is missing") from error
    if about.st_size != shard.bytes or not stat.S_ISREG(about.st_mode):
        raise DamagedShardError(path, f"it has {about.st_size} bytes, not {shard.bytes}")


def check_digest(path: Path, shard: ShardDigest) -> None:
    """Read a whole .tar: a `DamagedShardError` if it differs from its digest, a `DataError` if it cannot be read."""
    check_size(path, shard)
    with system_errors_named(path), open_stored(path, follow=True) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.sha256:
        raise DamagedShardError(path, "it differs from its digest")


def _read(path: Path) -> bytes:
    try:
        with system_errors_named(path):
            return read_stored(path, _MAX_BYTES, follow=True)
    except ValueError as error:
        raise DamagedShardError(path, str(error)) from error


def _parse(kind: type[T], text: bytes, path: Path, version: str) -> T:
    try:
        value = parse_object(text)
        found = value[version]
    except (ValueError, KeyError) as error:
        raise DamagedShardError(path, f"no JSON object with {version}") from error
    if found != VERSION:
        cause = f"its format is {str(found)[:20]}, and this smalti reads {VERSION}"
        raise DataError(f"cannot read {path}", cause=cause, fix="prepare it again, or use another version of smalti")
    try:
        return from_json(kind, value, path.name)
    except UsageError as error:
        raise DamagedShardError(path, str(error)[:200]) from error
