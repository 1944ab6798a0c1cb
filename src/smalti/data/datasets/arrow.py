"""Hugging Face `datasets` folders as `save_to_disk` writes them, read by memory map without that library."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smalti.core.errors import DataError
from smalti.core.files import sha256
from smalti.core.log import Log
from smalti.core.stored import read_object
from smalti.data.datasets.data_files import LocalFiles, require_fetched
from smalti.data.datasets.dataset import place_in
from smalti.data.datasets.tables import (
    ColumnLabels,
    TableDataset,
    cells,
    choose_split,
    find_columns,
    plain,
    require_column,
    require_extra,
    table_errors_named,
    without_bytes,
)

_DICT, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"


@dataclass(frozen=True)
class ArrowFiles:
    """The files of one split: tables, and tables of row indices where the dataset is a selection of their rows."""

    data: list[Path]
    indices: list[Path]
    notes: tuple[str, ...] = ()


class Arrow(TableDataset):
    """The rows of Arrow files, in file order or in that of an indices mapping. Nothing is copied until it is read."""

    kind = "huggingface"

    def __init__(
        self,
        files: ArrowFiles,
        channels: int,
        log: Log | None = None,
        label_separator: str = "auto",
        image_column: str = "",
    ) -> None:
        require_extra("pyarrow", str(files.data[0]))
        super().__init__(LocalFiles(files.data, "file"), channels)
        self.files = files
        first = self.places.names[0]
        with (log or Log()).progress("index files", len(self.places)) as bar:
            tables = []
            for number, path in enumerate(files.data):
                tables.append(open_table(path))
                bar.update(number + 1)
        columns = find_columns(tables[0].schema, first, image_column)
        labels = ColumnLabels(columns, first)
        for table, path in zip(tables, files.data, strict=True):
            if table.schema.types != tables[0].schema.types or table.schema.names != tables[0].schema.names:
                raise DataError(f"{path} is another table than the first", cause="its columns are different")
            if columns.label:
                column = table.column(columns.label)
                with table_errors_named(str(path)):
                    column.validate(full=True)
                    for chunk in column.chunks:
                        labels.add(chunk)
        self.columns = columns
        pairs = zip(tables, files.data, strict=True)
        self._images = [_checked(table.column(columns.image), path) for table, path in pairs]
        self._ends = list(accumulate(map(len, self._images)))
        self._order = _order(files.indices, self._ends[-1])
        if not len(self):
            raise DataError(f"no images in {first}", cause="the table has no rows", fix="check the path")
        if all(images.null_count == len(images) for images in self._images):
            raise without_bytes(first, columns.image, len(self))
        self.notes = (*files.notes, *columns.notes)
        self.no_labels = columns.no_labels
        self.take_labels(labels.build(label_separator))
        if self.labels is not None and self._order is not None:
            self.labels = self.labels[self._order]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_images", "_order")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._images = [_checked(open_table(path).column(self.columns.image), path) for path in self.files.data]
        self._order = _order(self.files.indices, self._ends[-1])

    def __len__(self) -> int:
        return self._ends[-1] if self._order is None else len(self._order)

    def place(self, index: int) -> tuple[int, int]:
        position = range(len(self))[index]
        row = position if self._order is None else int(self._order[position])
        return place_in(self._ends, row)

    def arrays(self, column: str) -> Iterator[Any]:
        for path in self.files.data:
            table = open_table(path)
            require_column(table.schema, column, str(path))
            yield table.column(column)

    def column(self, name: str) -> list[str | None]:
        found = super().column(name)
        return found if self._order is None else [found[row] for row in self._order.tolist()]

    def fingerprint(self) -> str:
        order = b"" if self._order is None else self._order.astype("<i8").tobytes()
        return sha256(super().fingerprint().encode() + order)

    def length(self, index: int) -> int:
        cell = plain(self.cell(index))
        return int(cell.as_buffer().size) if cell.is_valid else 0

    def cell(self, index: int) -> Any:
        file, row = self.place(index)
        return self._images[file][row]


def open_table(path: Path) -> Any:
    """Memory-map an Arrow file (stream or file) as a table; a `DataError` if it is damaged, or compressed."""
    import pyarrow as pa

    with table_errors_named(str(path)), pa.memory_map(str(path)) as source:
        whole = source.read_buffer()
        batches = list(_batches(whole))
        schema = batches[0].schema if batches else pa.ipc.read_schema(whole)
        return pa.Table.from_batches(batches, schema)


def _batches(whole: Any) -> Iterator[Any]:
    """Yield the record batches of an Arrow file, given as a buffer, without copying."""
    import pyarrow as pa

    if whole[:6].to_pybytes() == b"ARROW1":
        reader = pa.ipc.open_file(whole)
        batches = map(reader.get_batch, range(reader.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(whole))
    for batch in batches:
        if batch.num_rows < 0:
            raise ValueError(f"it says that there are {batch.num_rows} rows")
        batch.validate()
        for buffer in (buffer for column in batch.columns for buffer in column.buffers() if buffer):
            if not whole.address <= buffer.address <= whole.address + whole.size:
                raise ValueError("compressed: it cannot be read from the middle; save it without compression")
        yield batch


def _checked(column: Any, path: Path) -> Any:
    """The bytes of an image column, with validated offsets: a wrong one would read outside of the file."""
    import pyarrow as pa

    with table_errors_named(str(path)):
        images = pa.chunked_array([cells(chunk) for chunk in column.chunks], None if column.chunks else pa.binary())
        images.validate(full=True)
        return images


def _order(paths: list[Path], rows: int) -> NDArray[np.int64] | None:
    """The row indices that an indices mapping selects, int64, shape (n,), each in 0..rows-1; None without a mapping."""
    if not paths:
        return None
    parts = [open_table(path).column(0).to_numpy().astype(np.int64) for path in paths]
    order = np.concatenate(parts)
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < rows:
        raise DataError(f"cannot read {paths[0]}", cause=f"it selects rows beyond the {rows} there are")
    return order


def is_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` has written this folder."""
    return (folder / _DICT).is_file() or ((folder / _STATE).is_file() and (folder / _INFO).is_file())


def arrow_files(folder: Path) -> ArrowFiles:
    """The files of a dataset; of several splits, those of the training split; a `DataError` if that is not clear."""
    if (folder / _DICT).is_file():
        splits = _read_json(folder / _DICT).get("splits")
        names = [name for name in splits if _is_name(name)] if isinstance(splits, list) else []
        split, notes = choose_split({name: str(folder / name) for name in names}, str(folder))
        found = arrow_files(folder / split)
        return ArrowFiles(found.data, found.indices, notes)
    state = _read_json(folder / _STATE)
    data = _named(folder, state.get("_data_files"))
    if not data:
        raise DataError(f"cannot read {folder / _STATE}", cause="it names no files", fix="save the data set again")
    return ArrowFiles(data, _named(folder, state.get("_indices_data_files") or state.get("_indices_files")))


def _named(folder: Path, entries: Any) -> list[Path]:
    """The files that a JSON description names; they are looked for in its folder, whatever path it gives."""
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries or ()]
    if not all(_is_name(name) for name in names):
        raise DataError(f"cannot read {folder / _STATE}", cause="a file it names is none of its folder")
    return [folder / str(name) for name in names]


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _read_json(path: Path) -> dict[str, Any]:
    require_fetched(path)
    try:
        return read_object(path, follow=True)
    except ValueError as error:
        raise DataError(f"cannot read {path}", cause=str(error), fix="save the data set again") from error
