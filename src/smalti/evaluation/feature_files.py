"""Files of features: for every image a row of float32, its position in the data set, its key and its label.

features.npy          n x F, as `numpy.save` writes it
features.rows.csv     position, key, label: a line for each row
features.about.json   what the features are

features.parquet      columns position, key, label (null: none) and features (lists of F); what they are in its metadata
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from smalti.core.addresses import is_address, shown
from smalti.core.config import require
from smalti.core.errors import DataError, UsageError
from smalti.core.files import write_file, write_json
from smalti.core.stored import open_stored, parse_object, read_object
from smalti.data.datasets.folder import is_within
from smalti.data.datasets.names import PackedNames, PackedNamesBuilder
from smalti.data.datasets.open import EMBEDDED
from smalti.data.datasets.tables import require_extra
from smalti.data.values import Window, require_window

NPY, PARQUET = ".npy", ".parquet"

_MAGIC, _START = b"\x93NUMPY\x01\x00", 128
_HEADER = re.compile(rb"\{'descr': '<f4', 'fortran_order': False, 'shape': \((\d{1,12}), (\d{1,9})\), \} *\n")
_COLUMNS = ("position", "key", "label")
_FIX = "make it with smalti embed MODEL DATA --out"


class Row(NamedTuple):
    """Which image a row is of: its position in the data set, its key there, and its label or nothing."""

    position: int
    key: str
    label: str


class Part(NamedTuple):
    """Consecutive rows: which images they are of, and their features, float32, (m, F)."""

    rows: Iterable[Row]
    features: Float[np.ndarray, "m F"]


def write_features(path: Path, parts: Callable[[], Iterable[Part]], width: int, about: dict[str, Any]) -> None:
    """Write a file of features; of several files the one at `path` comes last.

    Args:
        path: its suffix says which kind.
        parts: makes all rows, in order; it may be called more than once.
        width: F, the number of features of an image.
        about: what the features are, as JSON values.

    Raises:
        OutputError: it cannot be written.
    """
    if path.suffix == PARQUET:
        write_file(path, lambda file: _fill_parquet(file, parts(), width, about))
        return
    write_file(sidecar_path(path, "rows.csv"), lambda file: _fill_csv(file, parts()))
    write_json(sidecar_path(path, "about.json"), about)
    write_file(path, lambda file: _fill_npy(file, parts(), width))


def open_features(path: Path) -> "FeatureFile":
    """Open what `write_features` wrote.

    Raises:
        DataError: there is none, or it is damaged.
    """
    if path.suffix not in (NPY, PARQUET):
        raise DataError(f"{path} holds no features", cause="they are in a .npy or .parquet", fix=f"{_FIX} FILE")
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        return _Npy(path) if path.suffix == NPY else _Parquet(path)
    except OSError as error:
        raise DataError(f"cannot read {path}", cause=error.strerror or str(error), fix=f"{_FIX} {path}") from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{path} holds no features of smalti", cause=str(error), fix=f"{_FIX} {path}") from error


def open_described(path: Path) -> "FeatureFile":
    """Open a file with at least one row that says which features of which images it holds.

    Raises:
        DataError: as in `open_features`, or it does not say that in values of the right types.
        UsageError: it has no rows.
    """
    features = open_features(path)
    require(features.count > 0, f"{path} has no rows")
    for name, kind in (("model", str), ("weights", str), ("images", str), ("layer", int), ("pooling", str)):
        if type(features.about.get(name)) is not kind:
            cause = f"what it says of itself has no {name}"
            raise DataError(
                f"{features.path} holds no features of smalti", cause=cause, fix="make it with smalti embed"
            )
    return features


def recorded_window(features: "FeatureFile") -> Window | None:
    """The value window that a file says its images were seen with.

    Raises:
        DataError: it is none.
    """
    said = features.about.get("window")
    if said is None:
        return None
    try:
        window = tuple(map(float, said)) if isinstance(said, list) else ()
        require_window(window, max(1, len(window) // 2))
        return window
    except (TypeError, ValueError, UsageError) as error:
        cause = f"what it says of itself has a value window of {said}"
        raise DataError(
            f"{features.path} holds no features of smalti", cause=cause, fix="make it with smalti embed"
        ) from error


def recorded_images(features: "FeatureFile") -> str:
    """Where a file says that its images are.

    Raises:
        DataError: at an address, or outside of the folder of the file: no request is sent, and nothing is opened there,
            because a file says so.
    """
    place, fix = str(features.about["images"]), "give it with --data, if it is right"
    if is_address(place):
        cause = f"{features.path.name} says that its images are at {shown(place)}"
        raise DataError("nothing is fetched from there unasked", cause=cause, fix=fix)
    folder, there = (os.path.realpath(os.fsencode(path)) for path in (features.path.parent, place))
    if place != EMBEDDED and not is_within(there, (folder,)):
        cause = f"{features.path.name} says that its images are in {place}, outside its own folder"
        raise DataError("nothing is opened there unasked", cause=cause, fix=fix)
    return place


class _Npy:
    def __init__(self, path: Path) -> None:
        self.path, self.about = path, read_object(sidecar_path(path, "about.json"), follow=True)
        with open_stored(path, follow=True) as file:
            found = _HEADER.fullmatch(file.read(_START), len(_MAGIC) + 2)
            size = file.seek(0, io.SEEK_END)
        if found is None:
            raise ValueError("it is no array of n x F float32")
        self.count, self.width = map(int, found.groups())
        if self.width == 0:
            raise ValueError("it has no columns")
        if size != _START + 4 * self.count * self.width:
            raise ValueError(f"it has {size} bytes, which are not {self.count} rows of {self.width} features")
        self._features = np.memmap(path, "<f4", "r", _START, (self.count, self.width))
        self._rows = _read_csv(sidecar_path(path, "rows.csv"))
        if len(self._rows) != self.count:
            raise ValueError(f"{sidecar_path(path, 'rows.csv').name} has {len(self._rows)} lines for {self.count} rows")

    def chunks(self, size: int, start: int = 0) -> Iterator[Float[Tensor, "m F"]]:
        for first in range(start, self.count, size):
            yield torch.from_numpy(np.array(self._features[first : first + size]))

    def row(self, number: int) -> Row:
        position, key, label = self._rows[number].decode().split("\0")
        return Row(int(position), key, label)


class _Parquet:
    def __init__(self, path: Path) -> None:
        require_extra("pyarrow", str(path))
        import pyarrow.parquet as pq

        self.path, self._file = path, pq.ParquetFile(path)
        metadata = self._file.schema_arrow.metadata or {}
        self.about = parse_object(metadata[b"smalti"])
        self.count = self._file.metadata.num_rows
        schema = self._file.schema_arrow
        self.width = getattr(schema.field("features").type, "list_size", 0)
        if self.width < 1 or [schema.field(name).type for name in (*_COLUMNS, "features")] != _types(self.width):
            raise ValueError("its columns are of other types")
        self._rows = self._file.read(columns=list(_COLUMNS))
        if any(self._rows.column(name).null_count for name in ("position", "key")):
            raise ValueError("a row has no position or no key")

    def chunks(self, size: int, start: int = 0) -> Iterator[Float[Tensor, "m F"]]:
        before = 0
        for batch in self._file.iter_batches(size, columns=["features"]):
            skipped, before = max(0, start - before), before + len(batch)
            if before > start:
                flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                if len(flat) != len(batch) * self.width:
                    raise DataError(f"{self.path} is damaged", cause="a row has no features", fix=f"{_FIX} FILE")
                yield torch.from_numpy(np.array(flat).reshape(len(batch), -1)[skipped:])

    def row(self, number: int) -> Row:
        position, key, label = (self._rows.column(name)[number].as_py() for name in _COLUMNS)
        return Row(position, key, label or "")


FeatureFile: TypeAlias = _Npy | _Parquet
"""Features that were written, read in pieces: `count` rows of `width` features; `about` says what they are.

`chunks` are all rows from `start` on, at most `size` at a time; `row` says which image a row is of.
"""


def text_of(name: str) -> str:
    """A key or label as UTF-8 can hold it: bytes of a file name that are not UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def sidecar_path(path: Path, suffix: str) -> Path:
    """The path of a file that belongs to another one: the same name with another suffix."""
    return path.with_name(f"{path.stem}.{suffix}")


def _fill_npy(file: BinaryIO, parts: Iterable[Part], width: int) -> None:
    count = 0
    file.write(_header(0, width))
    for part in parts:
        file.write(np.ascontiguousarray(part.features, "<f4").tobytes())
        count += len(part.features)
    file.seek(0)
    file.write(_header(count, width))


def _header(count: int, width: int) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {width}), }}".encode()
    length = _START - len(_MAGIC) - 2
    return _MAGIC + length.to_bytes(2, "little") + header.ljust(length - 1) + b"\n"


def _fill_csv(file: BinaryIO, parts: Iterable[Part]) -> None:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_COLUMNS)
    for part in parts:
        lines.writerows(part.rows)
    text.detach()  # flushes it, and leaves the file open


def _read_csv(path: Path) -> PackedNames:
    found = PackedNamesBuilder()
    with io.TextIOWrapper(open_stored(path, follow=True), "utf-8", newline="") as file:
        lines = csv.reader(file)
        if tuple(next(lines, ())) != _COLUMNS:
            raise ValueError(f"{path.name} does not begin with {','.join(_COLUMNS)}")
        for line in lines:
            if len(line) != len(_COLUMNS) or not re.fullmatch(r"[0-9]{1,18}", line[0]) or "\0" in "".join(line):
                raise ValueError(f"line {lines.line_num} of {path.name} is no position, key and label")
            found.add("\0".join(line).encode())
    return found.build()


def _types(width: int) -> list[Any]:
    """Those of the columns of a Parquet file, in order."""
    import pyarrow as pa

    return [pa.int64(), pa.string(), pa.string(), pa.list_(pa.float32(), width)]


def _fill_parquet(file: BinaryIO, parts: Iterable[Part], width: int, about: dict[str, Any]) -> None:
    """Every part becomes a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = _types(width)
    fields = [pa.field(name, kind) for name, kind in zip((*_COLUMNS, "features"), types, strict=True)]
    schema = pa.schema(fields, {"smalti": json.dumps(about)})
    with pq.ParquetWriter(file, schema, use_dictionary=["label"]) as writer:
        for part in parts:
            columns = [list(column) for column in zip(*part.rows, strict=True)] or [[], [], []]
            columns[2] = [label or None for label in columns[2]]
            flat = pa.array(part.features.reshape(-1), pa.float32())
            arrays = [pa.array(column, kind) for column, kind in zip(columns, types[:3], strict=True)]
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, width))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
