"""Opens DATA, as given on the command line, as a dataset."""

import contextlib
import os
from pathlib import Path

from smalti.core.config import did_you_mean
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.arrow import Arrow, ArrowFiles, arrow_files, is_dataset
from smalti.data.datasets.data_files import LocalFiles, require_fetched
from smalti.data.datasets.dataset import ImageDataset, embedded
from smalti.data.datasets.file_list import FileList
from smalti.data.datasets.folder import IRREGULAR, Folder, FollowLinks
from smalti.data.datasets.lists import TABLE_SUFFIXES, TEXT_SUFFIXES, is_remote
from smalti.data.datasets.parquet import Parquet, parquet_files
from smalti.data.datasets.prepared import Prepared, is_prepared, refuse_pack
from smalti.data.datasets.remote import RemoteFiles, check_address, shown, suffix_of
from smalti.data.datasets.tar import Shards, expand
from smalti.data.decode import EXTENSIONS

EMBEDDED = "embedded"
PARQUET, TAR = ".parquet", ".tar"


def open_source(
    path: str,
    channels: int,
    log: Log | None = None,
    follow: FollowLinks = "inside",
    root: str = "",
    label_separator: str = "auto",
) -> ImageDataset:
    """Open the dataset that DATA names; of several splits, the training split.

    DATA is a folder, a list or CSV file, tar shards or Parquet files (by a pattern, local or at an address), a Hugging
    Face dataset, the output of `smalti prepare`, or the embedded images.

    Args:
        path: DATA.
        channels: the channels of decoded images, 1 (grey) or 3 (RGB).
        log: shows progress.
        follow: which symbolic links to follow in a folder.
        root: the folder that the paths of a list are relative to; empty: that of the list.
        label_separator: what is between several labels of an image; see `labels.resolve`.

    Raises:
        DataError: DATA cannot be opened; the message says why, and suggests a fix.
    """
    if path == EMBEDDED:
        return embedded("train").with_channels(channels)
    if not path:
        raise DataError("no images given", fix="use --data FOLDER, or --data embedded")
    place = Path(path).expanduser()
    try:
        if is_remote(path):
            return _open_remote(path, channels, log, label_separator)
        if "{" in path and not place.exists():
            return _open_files([Path(file).expanduser() for file in expand(path)], channels, log, label_separator)
        if not place.exists():
            raise _missing(place)
        if place.is_dir():
            return _open_folder(place, channels, log, follow, label_separator)
        require_fetched(place)
        if place.suffix.lower() in TEXT_SUFFIXES | TABLE_SUFFIXES and place.is_file():
            return FileList(place, channels, root, label_separator, log)
        return _open_file(place, channels, log, label_separator)
    except OSError as error:
        where = os.fsdecode(error.filename or place)
        raise DataError(f"cannot list {where}", cause=error.strerror or str(error)) from error


def lasting(data: str) -> str:
    """DATA in a form valid from any working directory, without the secrets of an address."""
    if is_remote(data):
        return shown(data)
    return data if data == EMBEDDED else os.path.abspath(os.path.expanduser(data))


def _open_remote(pattern: str, channels: int, log: Log | None, separator: str) -> ImageDataset:
    check_address(pattern)
    urls = expand(pattern)
    suffixes = {suffix_of(url) for url in urls}
    if suffixes == {PARQUET}:
        return Parquet(RemoteFiles(urls), channels, log, separator)
    if suffixes == {TAR}:
        return Shards(RemoteFiles(urls), channels, log, separator)
    found = ", ".join(sorted(suffix or "a folder" for suffix in suffixes))
    cause = f"at an address are read tar shards (.tar) and Parquet files, not {found}"
    raise DataError(f"cannot open {shown(pattern)}", cause=cause, fix="as in https://.../shards-{000..009}.tar")


def _open_files(paths: list[Path], channels: int, log: Log | None, separator: str) -> ImageDataset:
    """Open the Parquet files or tar shards of a pattern."""
    if all(path.suffix.lower() == PARQUET for path in paths):
        return Parquet(LocalFiles(paths, "file"), channels, log, separator)
    return Shards(LocalFiles(paths), channels, log, separator)


def _open_folder(place: Path, channels: int, log: Log | None, follow: FollowLinks, separator: str) -> ImageDataset:
    refuse_pack(place)
    if is_prepared(place):
        return Prepared(place, channels)
    if is_dataset(place):
        return Arrow(arrow_files(place), channels, log, separator)
    try:
        return Folder(place, channels, log, follow)
    except DataError:  # no image files
        files, notes = parquet_files(place, follow)
        if not files:
            raise
        source = Parquet(LocalFiles(files, "file"), channels, log, separator)
        source.notes = (*notes, *source.notes)
        return source


def _open_file(path: Path, channels: int, log: Log | None, separator: str) -> ImageDataset:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path} is neither a folder nor a file", cause=IRREGULAR, fix="check the path")
    if ".tar" in (part.lower() for part in path.suffixes[-2:]) or suffix == ".tgz":
        return Shards(LocalFiles([path]), channels, log, separator)
    if suffix == PARQUET:
        return Parquet(LocalFiles([path]), channels, log, separator)
    if suffix == ".arrow":
        return Arrow(ArrowFiles([path], []), channels, log, separator)
    if suffix in EXTENSIONS:
        raise DataError(f"{path} is a file", cause="DATA is a folder of images", fix="give the folder it lies in")
    cause = "DATA is a folder of images, a list of them (.txt .lst .csv .tsv), tar shards (.tar), .parquet or .arrow"
    raise DataError(f"{path} is a file", cause=cause, fix="unpack it into a folder" if suffix == ".zip" else "")


def _missing(path: Path) -> DataError:
    """The error for a path that does not exist; it suggests a similar name that does."""
    with contextlib.suppress(OSError):
        if close := did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()]):
            return DataError(f"no folder {path}", cause="it does not exist", fix=f"check the path: {close}")
    where = "" if path.is_absolute() else f"; it is looked for in {Path.cwd()}"
    return DataError(f"no folder {path}", cause="it does not exist", fix=f"check the path{where}")
