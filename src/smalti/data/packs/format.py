"""The files of a pack: the images of a data set, made small once and laid end to end in a few large files.

```
PACK/part-00000.bin     images, each a JPEG, PPM (P6) or PGM (P5) file, one after the other with nothing between
     part-00000.index   a line of JSON (`Header`), then for the part's n images, little-endian and without gaps:
                          n uint64  where each image ends in the .bin, in bytes; the next one begins there
                          n uint64  where each name ends in the names
                          n int32   labels: positions in `classes` of pack.json, or -1
                          the names, UTF-8, one after the other; other bytes of a file's name stay as they are
     part-00001.bin ...
     pack.json          `About`: settings, number of images, classes, size and digests of every part
     bad_files.jsonl    the images that could not be read, an object with path and reason a line; only where some are
```

An index is written after its .bin and pack.json after everything else, each whole or not at all: a part counts only
when its index is there and true, and a pack only when pack.json is. Digests are SHA-256 in hexadecimal.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from smalti.core.errors import DataError, UsageError
from smalti.core.files import sha256
from smalti.data.packs.record import Encoding, Form

VERSION = 1
ABOUT, BAD_FILES = "pack.json", "bad_files.jsonl"


class DamagedPackError(DataError):
    """A file of a pack that is not as it was written; writing it again is the remedy."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path} is damaged", cause=cause, fix="run the same smalti prepare again")


@dataclass(frozen=True)
class Settings:
    """What a pack is made of and how; it is continued only under the same.

    Attributes:
        data: DATA as an absolute path.
        source: what DATA is, in a word.
        side: the shorter side in pixels, at most.
        quality: of JPEGs, 1 to 100; None where pixels are stored.
        channels: 1 grey, 3 RGB.
        limit: images at most, an even sample.
        length: how many images are in DATA.
        fingerprint: a digest of their names, labels and, where that is cheap to know, lengths.
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

    @property
    def form(self) -> Form:
        """What of it concerns a single image."""
        return Form(self.side, self.encoding, self.quality or 0, self.channels)

    def require(self, wanted: "Settings", folder: Path) -> None:
        """Refuse to go on with `folder`, which was begun under these settings, where others are wanted.

        Raises:
            UsageError: it names the first field that differs.
        """
        for name in (field.name for field in fields(self)):
            was, now = getattr(self, name), getattr(wanted, name)
            if was != now and name in ("length", "fingerprint"):
                cause = f"files or labels in {self.data} have changed: {self.length} images then, {wanted.length} now"
                raise UsageError(f"{folder} was prepared from other images", cause=cause, fix="use another --out")
            if was != now:
                fix = f"use the same {name}, or another --out"
                raise UsageError(f"{folder} was prepared with {name} {was}, now {now}", fix=fix)


@dataclass(frozen=True)
class PackPart:
    """An entry of pack.json; its place in the list is the number in the names of its files."""

    images: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Header:
    """The first line of an index.

    Attributes:
        settings: those of the whole pack.
        start: how many images of the source the parts before have dealt with, unreadable ones included.
        part: how many images this one holds, the size and digest of its .bin, the digest of what follows this line.
        unreadable: position in the source, path and reason of each image that could not be read.
    """

    smalti_pack_part: int
    settings: Settings
    start: int
    part: PackPart
    unreadable: tuple[tuple[int, str, str], ...]

    @property
    def stop(self) -> int:
        """How many images of the source this part and those before it have dealt with."""
        return self.start + self.part.images + len(self.unreadable)


@dataclass(frozen=True)
class About:
    """What pack.json says. `digest` stands for images, names, labels and classes, wherever the pack and DATA lie."""

    smalti_pack: int
    smalti: str
    digest: str
    settings: Settings
    images: int
    unreadable: int
    classes: tuple[str, ...]
    parts: tuple[PackPart, ...]


def bin_path(folder: Path, number: int) -> Path:
    """The images of a part."""
    return folder / f"part-{number:05d}.bin"


def index_path(folder: Path, number: int) -> Path:
    """The index of a part."""
    return folder / f"part-{number:05d}.index"


def digest_of(classes: tuple[str, ...], parts: tuple[PackPart, ...]) -> str:
    """The digest of a pack's content."""
    return sha256(json.dumps([classes, [(part.sha256, part.index_sha256) for part in parts]]).encode())
