"""Opens DATA, as given on the command line, as a dataset."""

import contextlib
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from smalti.core.addresses import is_address, shown, without_secrets
from smalti.core.config import did_you_mean, setting
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.arrow import Arrow, ArrowFiles, arrow_files, is_dataset
from smalti.data.datasets.concat import ConcatDataset
from smalti.data.datasets.data_files import LocalFiles, require_fetched
from smalti.data.datasets.dataset import ImageDataset, embedded
from smalti.data.datasets.file_list import FileList
from smalti.data.datasets.folder import IRREGULAR, Folder, FollowLinks
from smalti.data.datasets.labels import LABEL_SEPARATOR
from smalti.data.datasets.layout import Layout, read_layout
from smalti.data.datasets.lists import TABLE_SUFFIXES, TEXT_SUFFIXES
from smalti.data.datasets.pages import Pages, ReadPages, unread_pages
from smalti.data.datasets.parquet import Parquet, parquet_files
from smalti.data.datasets.prepared import Prepared, is_prepared, refuse_pack
from smalti.data.datasets.remote import RemoteFiles, check_address, suffix_of
from smalti.data.datasets.tar import Shards, expand
from smalti.data.datasets.zip_members import ZipPlace, zip_place
from smalti.data.datasets.zips import Zips
from smalti.data.formats import EXTENSIONS
from smalti.data.values import Window

EMBEDDED = "embedded"
PARQUET, TAR = ".parquet", ".tar"
Part: TypeAlias = Literal["train", "all"]
"""Of a folder with splits: the images to learn from, or those of all splits."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How DATA is read, the same in every verb."""

    follow_links: FollowLinks = setting("inside", "links of a folder: those that stay inside it, or all")
    root: str = setting(
        "", "the folder that the paths of a list are relative to; empty: that of the list", resume="free"
    )
    label_separator: str = setting("auto", LABEL_SEPARATOR)
    image_column: str = setting(
        "", "of a table with several columns of images: the one that is read; empty: a declared one, or of a usual name"
    )
    pages: ReadPages = setting("first", "of a TIFF with several pages: the first, or all, each as an image")


def read_as(options: ReadOptions) -> dict[str, Any]:
    """The options of any verb by name."""
    return {field.name: getattr(options, field.name) for field in fields(ReadOptions)}


_USUAL = ReadOptions()


def open_source(
    path: str,
    channels: int,
    log: Log | None = None,
    options: ReadOptions = _USUAL,
    part: Part = "train",
    window: Window | None = None,
) -> ImageDataset:
    """Open the dataset that DATA names; of several splits, the training split.

    DATA is a folder, a list or CSV file, zip archives, tar shards or Parquet files (by a pattern, local or at an
    address), a Hugging Face dataset, the output of `smalti prepare`, or the embedded images.

    Args:
        path: DATA.
        channels: the channels of decoded images: 1 (grey), 3 (RGB), or as many as the files have.
        log: shows progress.
        options: how it is read.
        part: which images of a folder with splits.
        window: the stored values that become 0 and 255; None: all that a format has.

    Raises:
        DataError: DATA cannot be opened; the message says why, and suggests a fix.
    """
    source = _open(path, channels, log, options, part)
    if options.pages == "all" and not isinstance(source, ConcatDataset | Prepared):  # they have been read like this
        source = Pages(source, log)
    made = source.made_window
    if made is not None and window not in (None, made):
        cause = f"they were prepared with {made}, and {window} is asked for"
        raise DataError(f"{path} has images with another value window", cause=cause, fix="prepare them again")
    source.window = window if made is None else None  # not a second time
    return source


def _open(path: str, channels: int, log: Log | None, options: ReadOptions, part: Part) -> ImageDataset:
    if path == EMBEDDED:
        return embedded("train").with_channels(channels)
    if not path:
        raise DataError("no images given", fix="use --data FOLDER, or --data embedded")
    place = Path(path).expanduser()
    try:
        if is_address(path):
            return _open_remote(path, channels, log, options)
        if (archives := zip_place(path)) is not None:
            return _open_zips(path, archives, channels, log, options, part)
        if "{" in path and not place.exists():
            files = [Path(file).expanduser() for file in expand(path)]
            return _open_files(files, channels, log, options)
        if not place.exists():
            raise _missing(place)
        if place.is_dir():
            return _open_folder(place, channels, log, options, part)
        require_fetched(place)
        if place.suffix.lower() in TEXT_SUFFIXES | TABLE_SUFFIXES and place.is_file():
            return FileList(place, channels, options.root, options.label_separator, log)
        return _open_file(place, channels, log, options)
    except OSError as error:
        where = os.fsdecode(error.filename or place)
        raise DataError(f"cannot list {where}", cause=error.strerror or str(error)) from error


def open_with_notes(
    path: str,
    channels: int,
    log: Log,
    options: ReadOptions = _USUAL,
    part: Part = "train",
    window: Window | None = None,
) -> ImageDataset:
    """Open DATA as `open_source` does, and log what a user should know of it: its splits, notes, what is left out."""
    source = open_source(path, channels, log, options, part, window)
    for note in source.notes:
        log.say(f"note: {note}")
    if source.left_out.counts:
        log.say(f"left out: {source.left_out}")
    if options.pages == "first" and channels in (1, 3) and (unread := unread_pages(source)):
        log.say(f"note: the first page of each TIFF is read, {unread} further ones are not; --data.pages all")
    return source


def absolute_data(data: str) -> str:
    """DATA in a form valid from any working directory, without the secrets of an address."""
    if is_address(data):
        return without_secrets(data)
    return data if data == EMBEDDED else os.path.abspath(os.path.expanduser(data))


def _open_remote(pattern: str, channels: int, log: Log | None, options: ReadOptions) -> ImageDataset:
    check_address(pattern)
    urls = expand(pattern)
    suffixes = {suffix_of(url) for url in urls}
    if suffixes == {PARQUET}:
        return Parquet(RemoteFiles(urls), channels, log, options.label_separator, options.image_column)
    if suffixes == {TAR}:
        return Shards(RemoteFiles(urls), channels, log, options.label_separator)
    found = ", ".join(sorted(suffix or "a folder" for suffix in suffixes))
    cause = f"at an address are read tar shards (.tar) and Parquet files, not {found}"
    raise DataError(f"cannot open {shown(pattern)}", cause=cause, fix="as in https://.../shards-{000..009}.tar")


def _open_files(paths: list[Path], channels: int, log: Log | None, options: ReadOptions) -> ImageDataset:
    """Open the Parquet files or tar shards of a pattern."""
    if all(path.suffix.lower() == PARQUET for path in paths):
        return Parquet(LocalFiles(paths, "file"), channels, log, options.label_separator, options.image_column)
    return Shards(LocalFiles(paths), channels, log, options.label_separator)


def _open_folder(place: Path, channels: int, log: Log | None, options: ReadOptions, part: Part) -> ImageDataset:
    refuse_pack(place)
    if is_prepared(place):
        return Prepared(place, channels)
    if is_dataset(place):
        return Arrow(arrow_files(place), channels, log, options.label_separator, options.image_column)
    layout = read_layout(str(place), options.follow_links)
    if layout.splits:
        return _open_splits(layout, channels, log, options, part)
    try:
        source: ImageDataset = Folder(layout.root, channels, log, options.follow_links)
    except DataError:  # no image files
        files, notes = parquet_files(place, options.follow_links)
        if not files:
            raise
        source = Parquet(LocalFiles(files, "file"), channels, log, options.label_separator, options.image_column)
        source.notes = (*notes, *source.notes)
    if layout.wrapped:
        source.notes = (f"read is {layout.describe()}", *source.notes)
    return source


def _open_zips(
    path: str, archives: ZipPlace, channels: int, log: Log | None, options: ReadOptions, part: Part
) -> ImageDataset:
    layout = read_layout(path, options.follow_links)
    if layout.splits:
        return _open_splits(layout, channels, log, options, part)
    source = Zips(zip_place(str(layout.root)) or archives, channels)
    if layout.wrapped:
        source.notes = (f"read is {layout.describe()}", *source.notes)
    return source


def _open_splits(layout: Layout, channels: int, log: Log | None, options: ReadOptions, part: Part) -> ImageDataset:
    """The training split, or all splits as one."""
    if part == "train":
        source = _open(layout.train, channels, log, options, part)
    else:
        source = ConcatDataset(
            {path.name: open_source(str(path), channels, log, options) for path in layout.splits.values()}
        )
    source.notes = (f"splits: {layout.describe()}", *source.notes)
    return source


def _open_file(path: Path, channels: int, log: Log | None, options: ReadOptions) -> ImageDataset:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path} is neither a folder nor a file", cause=IRREGULAR, fix="check the path")
    if ".tar" in (part.lower() for part in path.suffixes[-2:]) or suffix == ".tgz":
        return Shards(LocalFiles([path]), channels, log, options.label_separator)
    if suffix == PARQUET:
        return Parquet(LocalFiles([path]), channels, log, options.label_separator, options.image_column)
    if suffix == ".arrow":
        return Arrow(ArrowFiles([path], []), channels, log, options.label_separator, options.image_column)
    if suffix in EXTENSIONS:
        raise DataError(f"{path} is a file", cause="DATA is a folder of images", fix="give the folder it lies in")
    cause = (
        "DATA is a folder of images, a list of them (.txt .lst .csv .tsv), .zip, tar shards (.tar), .parquet or .arrow"
    )
    raise DataError(f"{path} is a file", cause=cause)


def _missing(path: Path) -> DataError:
    """The error for a path that does not exist; it suggests a similar name that does."""
    with contextlib.suppress(OSError):
        if close := did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()]):
            return DataError(f"no folder {path}", cause="it does not exist", fix=f"check the path: {close}")
    if set("*?[") & set(path.name):
        fix = "give the folder of the images, or a list of them; only shards have patterns: 'shards-{000..009}.tar'"
        return DataError(f"no folder {path}", cause="patterns are not expanded here", fix=fix)
    where = "" if path.is_absolute() else f"; it is looked for in {Path.cwd()}"
    return DataError(f"no folder {path}", cause="it does not exist", fix=f"check the path{where}")
