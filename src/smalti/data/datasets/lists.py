"""Lists of images: a text file with one path per line, or a CSV file with a column of paths and, optionally, labels."""

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from smalti.core.config import did_you_mean
from smalti.core.errors import DataError
from smalti.data.datasets.names import Labels, Names, NamesBuilder, has_image_suffix

TEXT_SUFFIXES, TABLE_SUFFIXES = frozenset({".txt", ".lst"}), frozenset({".csv", ".tsv"})
PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category")
_REMOTE = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")


class Row(NamedTuple):
    """An image of a list: its line number from 1, path and label, and the names of their columns."""

    line: int
    path: str
    label: str | None
    path_column: str = ""
    label_column: str = ""


def is_remote(path: str) -> bool:
    """Whether a path is a command or a network address: `pipe:`, `http://`, `s3://`."""
    return _REMOTE.match(path) is not None


def read_list(path: Path) -> tuple[Names, Labels | None]:
    """The paths of a list as they are written, and the labels if it has any.

    The images are not accessed: a missing one is noticed when it is read.

    Raises:
        DataError: the list cannot be parsed; the message names line and column.
    """
    names, labels = NamesBuilder(), Labels()
    try:
        with open(path, encoding=_encoding(path), errors="surrogateescape", newline="") as file:
            for row in _table(file, path) if path.suffix.lower() in TABLE_SUFFIXES else _text(file, path):
                _check_path(row, path)
                names.add(os.fsencode(row.path))
                if row.label is not None:
                    _add_label(labels, row, path)
    except OSError as error:
        raise DataError(f"cannot read {path}", cause=error.strerror or str(error)) from error
    except (csv.Error, UnicodeError) as error:
        raise DataError(f"cannot read {path}", cause=f"no table: {error}") from error
    if not len(names):
        raise DataError(f"no images in {path}", cause="the list names none", fix="check the path")
    if len(labels.ids) not in (0, len(names)):
        raise DataError(
            f"{path} has labels on {len(labels.ids)} of {len(names)} lines", fix="label all of them or none"
        )
    return names.build(), labels if len(labels.ids) else None


def _encoding(path: Path) -> str:
    """The encoding: UTF-8, or UTF-16 (the "Unicode text" of spreadsheets); the byte order mark is dropped."""
    with open(path, "rb") as file:
        start = file.read(2)
    return "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _text(file: TextIO, path: Path) -> Iterator[Row]:
    """Yield the rows of a text file; each line is a path, or a path, white space and a label."""
    for number, line in enumerate(file, start=1):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        stem, _, last = text.rstrip().rpartition("\t" if "\t" in text else " ")
        if has_image_suffix(os.fsencode(text.rstrip())) or not has_image_suffix(os.fsencode(stem.rstrip())):
            yield Row(number, text, None)
        else:
            yield Row(number, stem.rstrip(), last, label_column="last")


def _table(file: TextIO, path: Path) -> Iterator[Row]:
    """Yield the rows below a header that names the columns; without a header, paths come first, then labels."""
    first = file.readline()
    separator = _separator(first, path)
    header = next(csv.reader([first], delimiter=separator), [])
    names = [cell.strip().lower() for cell in header]
    place = next((names.index(name) for name in PATH_COLUMNS if name in names), None)
    offset = 1
    if place is None:
        if not header or not has_image_suffix(os.fsencode(header[0].strip())):
            hint = next((hint for name in names if (hint := did_you_mean(name, list(PATH_COLUMNS)))), "")
            found = ", ".join(header) or "nothing"
            fix = hint or f"name it one of {', '.join(PATH_COLUMNS[:4])}, ..."
            raise DataError(f"{path} line 1: no column of paths", cause=f"the header is: {found}", fix=fix)
        place, label_place, offset = 0, 1 if len(header) > 1 else None, 0
        file.seek(0)
    else:
        label_place = next((names.index(name) for name in LABEL_COLUMNS if name in names), None)
    reader = csv.reader(file, delimiter=separator)
    for row in reader:
        line = reader.line_num + offset
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            cause = f"{len(row)} cells where line 1 has {len(header)}"
            raise DataError(f"{path} line {line}: wrong number of columns", cause=cause, fix="quote cells with commas")
        label = None if label_place is None else row[label_place].strip()
        yield Row(line, row[place], label, _column(header, place, offset), _column(header, label_place or 0, offset))


def _separator(first: str, path: Path) -> str:
    """What stands between the cells of a table, by its first line."""
    return "\t" if path.suffix.lower() == ".tsv" else ";" if first.count(";") > first.count(",") else ","


def read_column(path: Path, column: str) -> list[str]:
    """The cells of one column of a table with a header, a cell for each image in the order of `read_list`.

    Raises:
        DataError: there is no such column.
    """
    with open(path, encoding=_encoding(path), errors="surrogateescape", newline="") as file:
        first = file.readline()
        reader = csv.reader(file, delimiter=_separator(first, path))
        header = [cell.strip() for cell in next(csv.reader([first], delimiter=_separator(first, path)), [])]
        if column not in header:
            fix = did_you_mean(column, header) or f"there are: {', '.join(header)}"
            raise DataError(f"{path} has no column {column}", fix=fix)
        return [row[header.index(column)].strip() for row in reader if any(cell.strip() for cell in row)]


def _column(header: list[str], place: int, has_header: int) -> str:
    return header[place].strip() if has_header else str(place + 1)


def _check_path(row: Row, path: Path) -> None:
    where = f"{path} line {row.line}" + (f", column {row.path_column}" if row.path_column else "")
    if not row.path.strip():
        raise DataError(f"{where}: no path", fix="remove the line, or fill it in")
    if "\0" in row.path:
        raise DataError(f"{where}: a NUL character", cause="this is no text file", fix="save it as UTF-8")
    if is_remote(row.path):
        cause = "only plain paths are read, never a command or the network"
        raise DataError(f"{where}: {row.path[:80]}", cause=cause, fix="fetch the files first")
    if row.path.lower().endswith(".tar"):
        raise DataError(f"{where}: {row.path[:80]}", cause="an archive", fix="use --data 'shards-{000..009}.tar'")


def _add_label(labels: Labels, row: Row, path: Path) -> None:
    where = f"{path} line {row.line}, column {row.label_column}"
    if not row.label:
        raise DataError(f"{where}: no label", fix="label every line, or take the column out")
    try:
        labels.add(row.label)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
