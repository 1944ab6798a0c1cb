"""From DATA, as given on the command line, to a source."""

import contextlib
import os
from pathlib import Path

from smalti.core.config import did_you_mean
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.decode import EXTENSIONS
from smalti.data.listing import IRREGULAR, FollowLinks
from smalti.data.lists import TABLE_SUFFIXES, TEXT_SUFFIXES, is_remote
from smalti.data.shards import Shards, expand
from smalti.data.sources import FileList, Folder, Resident, embedded
from smalti.data.stored import Stored

EMBEDDED = "embedded"


def open_source(path: str, channels: int, log: Log | None = None, follow: FollowLinks = "inside") -> Stored | Resident:
    """The images that DATA names: a folder, a list or CSV file, tar shards, or the embedded ones (those to train on).

    Raises:
        DataError: what is wrong with it, and what could be meant.
    """
    return embedded("train").with_channels(channels) if path == EMBEDDED else open_stored(path, channels, log, follow)


def open_stored(path: str, channels: int, log: Log | None = None, follow: FollowLinks = "inside") -> Stored:
    """The images on the disk that DATA names.

    Raises:
        DataError: what is wrong with it, and what could be meant.
    """
    if not path:
        raise DataError("no images given", fix="use --data FOLDER, or --data embedded")
    if is_remote(path):
        cause = "only plain paths are read, never a command or the network"
        raise DataError(f"cannot open {path[:80]}", cause=cause, fix="fetch the files first")
    place = Path(path).expanduser()
    try:
        if "{" in path and not place.exists():
            return Shards([Path(shard).expanduser() for shard in expand(path)], channels, log)
        if not place.exists():
            raise _missing(place)
        if place.is_dir():
            return Folder(place, channels, log, follow)
        return _open_file(place, channels, log)
    except OSError as error:
        where = os.fsdecode(error.filename or place)
        raise DataError(f"cannot list {where}", cause=error.strerror or str(error)) from error


def _open_file(path: Path, channels: int, log: Log | None) -> Stored:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path} is neither a folder nor a file", cause=IRREGULAR, fix="check --data")
    if suffix in TEXT_SUFFIXES | TABLE_SUFFIXES:
        return FileList(path, channels)
    if ".tar" in (part.lower() for part in path.suffixes[-2:]) or suffix == ".tgz":
        return Shards([path], channels, log)
    if suffix in EXTENSIONS:
        raise DataError(f"{path} is a file", cause="DATA is a folder of images", fix="give the folder it lies in")
    cause = "DATA is a folder of images, a list of them (.txt .lst .csv .tsv) or tar shards (.tar)"
    raise DataError(f"{path} is a file", cause=cause, fix="unpack it into a folder" if suffix == ".zip" else "")


def _missing(path: Path) -> DataError:
    """What does not exist; with a name close to it that does."""
    with contextlib.suppress(OSError):
        if close := did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()]):
            return DataError(f"no folder {path}", cause="it does not exist", fix=f"check --data: {close}")
    where = "" if path.is_absolute() else f"; it is looked for in {Path.cwd()}"
    return DataError(f"no folder {path}", cause="it does not exist", fix=f"check --data{where}")
