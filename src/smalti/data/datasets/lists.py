"""Lists of images: a text file with one path per line, or a table (CSV) with a column of paths, and labels."""

import csv
import os
import re
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, TextIO

from smalti.core.addresses import is_address
from smalti.core.config import did_you_mean
from smalti.core.errors import DataError
from smalti.data.datasets.data_files import system_errors_named
from smalti.data.datasets.label_columns import LABEL_COLUMNS, LabelColumn, guess_labels
from smalti.data.datasets.labels import Labels
from smalti.data.datasets.names import PackedNames, PackedNamesBuilder, may_be_image
from smalti.data.formats import ARRAYS, EXTENSIONS

TEXT_SUFFIXES, TABLE_SUFFIXES = frozenset({".txt", ".lst"}), frozenset({".csv", ".tsv"})
PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img")
ID_COLUMNS = (
    "images",
    "img_path",
    "image_file",
    "image_name",
    "img_name",
    "image_id",
    "img_id",
    "imageid",
    "id_code",
    "id",
)
_SUFFIXES = "|".join(re.escape(suffix) for suffix in sorted(EXTENSIONS | ARRAYS))
_PATH_FIRST = re.compile(rf"(?P<path>.*?({_SUFFIXES}))\s*[\t,;| ]\s*(?P<label>\S.*)", re.IGNORECASE)
_ID_FIRST = re.compile(r"(?P<path>[^\t,;| ]+)\s*[\t,;| ]\s*(?P<label>\S.*)")


class Row(NamedTuple):
    """An image of a list: its line number from 1, path and label, and the name of the column of paths."""

    line: int
    path: str
    label: str
    path_column: str = ""


class Listed(NamedTuple):
    """The paths of a list as they are written, and their labels.

    Attributes:
        notes: what should be said of them.
        no_labels: what it means if there are no labels: where they were looked for, and what is there.
    """

    names: PackedNames
    labels: Labels
    notes: tuple[str, ...]
    no_labels: str


def read_list(path: Path) -> Listed:
    """Read a list, but none of its images; a `DataError` with line and column where it cannot be parsed."""
    names, labels, notes, header = PackedNamesBuilder(), Labels(), list[str](), list[str]()
    try:
        with (
            system_errors_named(path),
            open(path, encoding=_encoding(path), errors="surrogateescape", newline="") as file,
        ):
            rows = _table(file, path, header, notes) if path.suffix.lower() in TABLE_SUFFIXES else _text(file, path)
            for row in rows:
                _check_path(row, path)
                names.add(os.fsencode(row.path))
                _add_label(labels, row, path)
    except (csv.Error, UnicodeError) as error:
        raise DataError(f"cannot read {path}", cause=f"no table: {error}") from error
    if not len(names):
        raise DataError(f"no images in {path}", cause="the list names none", fix="check the path")
    sought = f"the columns are {', '.join(header)}; labels are looked for in {', '.join(LABEL_COLUMNS[:4])}, ..."
    none = sought if header else "no line has a label behind its path"
    return Listed(names.build(), labels, tuple(notes), none)


def _encoding(path: Path) -> str:
    """The encoding: UTF-8, or UTF-16 (the "Unicode text" of spreadsheets); the byte order mark is dropped."""
    with open(path, "rb") as file:
        start = file.read(2)
    if start in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if len(start) == 2 and (start[0] == 0) != (start[1] == 0):  # half of an ASCII character
        return "utf-16-be" if start[0] == 0 else "utf-16-le"
    return "utf-8-sig"


def as_text(text: str) -> str:
    """A text as UTF-8, or where it is none as cp1252, the encoding of Windows."""
    if text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text):
        return text
    return os.fsencode(text).decode("cp1252", "replace")


def _text(file: TextIO, path: Path) -> Iterator[Row]:
    """Yield the rows of a text file; each line is a path, or a path, a separator and a label.

    A line without an image's extension is a path if there is such a file, else an id with a label after it.
    """
    for number, line in enumerate(file, start=1):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        found = None
        if not may_be_image(os.fsencode(text.rstrip())):
            found = _PATH_FIRST.fullmatch(text.rstrip())
            if found is None and not os.path.lexists(path.parent / text):
                found = _ID_FIRST.fullmatch(text.strip())
        yield Row(number, found["path"], found["label"]) if found else Row(number, text, "")


def _table(file: TextIO, path: Path, header: list[str], notes: list[str]) -> Iterator[Row]:
    """Yield the rows below a header that names the columns; without a header, paths come first, then labels.

    The names of the columns are appended to `header`, what should be said of them to `notes`.
    """
    first = file.readline()
    separator = _separator(first, path)
    header += [cell.strip() for cell in next(csv.reader([first], delimiter=separator), [])]
    names = [cell.lower() for cell in header]
    place = next((names.index(name) for name in PATH_COLUMNS + ID_COLUMNS if name in names), None)
    labels: LabelColumn | None = None
    if place is None:
        if not header or not may_be_image(os.fsencode(header[0])):
            raise _no_paths(path, header)
        place, offset, column = 0, 0, "1"
        labels = itemgetter(1) if len(header) > 1 else None
        file.seek(0)
    else:
        offset, column = 1, header[place]
        known = next((names.index(name) for name in LABEL_COLUMNS if name in names), None)
        if known is not None:
            labels = itemgetter(known)
        else:
            labels, note = guess_labels(_cells(file, path, header, separator, 1), header, place)
            notes += [note] if note else []
            file.seek(0)
            file.readline()
        if names[place] in ID_COLUMNS:
            notes.append(f"paths are taken from column '{column}'")
    for line, row in _cells(file, path, header, separator, offset):
        yield Row(line, row[place], labels(row) if labels else "", column)


def _no_paths(path: Path, header: list[str]) -> DataError:
    hint = next((hint for name in header if (hint := did_you_mean(name.lower(), list(PATH_COLUMNS)))), "")
    fix = hint or f"name it one of {', '.join(PATH_COLUMNS[:4])}, ..., id, image_id"
    found = ", ".join(header) or "nothing"
    return DataError(f"{path} line 1: no column of paths", cause=f"the header is: {found}", fix=fix)


def _cells(file: TextIO, path: Path, header: list[str], separator: str, offset: int) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line that is not empty; a `DataError` if it has not as many as the header."""
    reader = csv.reader(file, delimiter=separator)
    for row in reader:
        line = reader.line_num + offset
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            cause = f"{len(row)} cells where line 1 has {len(header)}"
            raise DataError(f"{path} line {line}: wrong number of columns", cause=cause, fix="quote cells with commas")
        yield line, row


def _separator(first: str, path: Path) -> str:
    """What stands between the cells of a table, by its first line."""
    return max("\t,;|" if path.suffix.lower() == ".tsv" else ",;\t|", key=first.count)


def read_column(path: Path, column: str) -> list[str]:
    """The cells of one column of a table with a header, in the order of `read_list`; a `DataError` if there is none."""
    with open(path, encoding=_encoding(path), errors="surrogateescape", newline="") as file:
        first = file.readline()
        reader = csv.reader(file, delimiter=_separator(first, path))
        header = [cell.strip() for cell in next(csv.reader([first], delimiter=_separator(first, path)), [])]
        if column not in header:
            fix = did_you_mean(column, header) or f"there are: {', '.join(header)}"
            raise DataError(f"{path} has no column {column}", fix=fix)
        return [row[header.index(column)].strip() for row in reader if any(cell.strip() for cell in row)]


def _check_path(row: Row, path: Path) -> None:
    where = f"{path} line {row.line}" + (f", column {row.path_column}" if row.path_column else "")
    if not row.path.strip():
        raise DataError(f"{where}: no path", fix="remove the line, or fill it in")
    if "\0" in row.path:
        raise DataError(f"{where}: a NUL character", cause="this is no text file", fix="save it as UTF-8")
    if is_address(row.path):
        cause = "only plain paths are read, never a command or the network"
        raise DataError(f"{where}: {row.path[:80]}", cause=cause, fix="fetch the files first")
    if row.path.lower().endswith(".tar"):
        raise DataError(f"{where}: {row.path[:80]}", cause="an archive", fix="use --data 'shards-{000..009}.tar'")


def _add_label(labels: Labels, row: Row, path: Path) -> None:
    if not row.label.strip():
        labels.add_none()
        return
    try:
        labels.add(as_text(row.label.strip()))
    except ValueError as error:
        raise DataError(f"{path} line {row.line}: {error}") from error
