"""Parquet files whose rows are images, for sequential reading: by `smalti prepare`, or into memory."""

import os
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator
from io import IOBase
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.data_files import DataFiles
from smalti.data.datasets.folder import OUTSIDE, FollowLinks, walk
from smalti.data.datasets.layout import SHARD, SPLIT_NAMES, WORD
from smalti.data.datasets.parquet_pages import DELTA_BYTE_ARRAY, Chunk, chunks, image_pages, label_rows
from smalti.data.datasets.tables import (
    ColumnLabels,
    Columns,
    TableDataset,
    cells,
    choose_split,
    find_columns,
    require_column,
    require_extra,
    table_errors_named,
    without_bytes,
)

BATCH_BYTES = 64 << 20
"""Row groups larger than this are decoded in batches of about this size, going by what the file says of its size."""
BATCH_ROWS = 1024
"""Rows of a batch at most, whatever the file says."""

_CACHED_BATCHES = 4
"""Decoded batches that are cached: threads that read in order are never further apart."""

_SLIM_BYTES = 1000
_MAX_ROWS, _MAX_BATCHES = 1 << 31, 10_000


class _Group(NamedTuple):
    """A row group: its first row among those of all files, rows to decode at a time, its file and its number there."""

    first: int
    step: int
    file: int
    number: int
    images: Chunk


class Parquet(TableDataset):
    """The images of Parquet files, in file order. Only the image column and the label column are ever read.

    Sequential reading decodes every row group once. Random access gives the same images, but decodes a row group again
    for most of them.
    """

    kind = "parquet"
    in_order = True

    def __init__(
        self,
        places: DataFiles,
        channels: int,
        log: Log | None = None,
        label_separator: str = "auto",
        image_column: str = "",
    ) -> None:
        require_extra("pyarrow", places.names[0])
        super().__init__(places, channels)
        index = _Index(image_column)
        with (log or Log()).progress("index files", len(places)) as bar:
            for number in range(len(places)):
                index.add(places, number)
                bar.update(number + 1)
        assert index.columns is not None
        assert index.labels is not None
        if not index.rows:
            raise DataError(f"no images in {places.names[0]}", cause="the table has no rows", fix="check the path")
        self.columns = index.columns
        self.notes = self.columns.notes
        self.no_labels = self.columns.no_labels
        self.take_labels(index.labels.build(label_separator))
        self._groups, self._length = index.groups, index.rows
        self._start()
        if index.bytes < _SLIM_BYTES * index.rows:  # rows so small that they may hold no images at all
            self.cell(0)
            if (some := self._kept[0][1]).null_count == len(some):
                raise without_bytes(places.names[0], self.columns.image, len(some))

    def _start(self) -> None:
        """Set up the state of one process: the reader of a row group, its position, decoded batches by their start."""
        self._lock, self._kept = Lock(), deque[tuple[int, Any]](maxlen=_CACHED_BATCHES)
        self._group, self._next = -1, 0
        self._reader: Iterator[Any] = iter(())

    def __getstate__(self) -> dict[str, Any]:
        own = ("_lock", "_kept", "_group", "_next", "_reader")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __len__(self) -> int:
        return self._length

    def place(self, index: int) -> tuple[int, int]:
        position = range(len(self))[index]
        file = self._groups[self._group_of(position)].file
        return file, position - self._groups[bisect_left(self._groups, file, key=attrgetter("file"))].first

    def arrays(self, column: str) -> Iterator[Any]:
        import pyarrow.parquet as pq

        for number, name in enumerate(self.places.names):
            with (
                table_errors_named(name, ""),
                self.places.peek(number) as raw,
                pq.ParquetFile(raw, pre_buffer=False) as file,
            ):
                require_column(file.schema_arrow, column, name)
                rows = label_rows(raw, column, name)
                for batch in file.iter_batches(rows, columns=[column], use_threads=False):
                    yield batch.column(0)

    def cell(self, index: int) -> Any:
        position = range(len(self))[index]
        with self._lock:
            while True:
                for start, images in self._kept:
                    if start <= position < start + len(images):
                        return images[position - start]
                self._read_on(position)

    def _group_of(self, position: int) -> int:
        return bisect_right(self._groups, position, key=attrgetter("first")) - 1

    def _read_on(self, position: int) -> None:
        """Decode the next batch of an image's row group, or its first batch if the reader is past the image."""
        group = self._group_of(position)
        name = self.places.names[self._groups[group].file]
        try:
            with table_errors_named(name, ""):
                if group != self._group or position < self._next:
                    rows = self._rows_at_once(group)  # before anything changes, as it may be interrupted
                    self._group, self._next = group, self._groups[group].first
                    self._reader = self._batches(group, rows)
                images = next(self._reader, None)
                if images is None:
                    raise ValueError("its row group is shorter than it says")
        except DataError:
            self._group = -1
            raise
        self._kept.append((self._next, images))
        self._next += len(images)

    def _rows_at_once(self, group: int) -> int:
        """How many rows of a row group are decoded at a time; a `DataError` if its pages are too large for that."""
        about = self._groups[group]
        with self.places.open(about.file) as raw:
            pages = image_pages(raw, about.images, self.places.names[about.file])
            encodings = {page.encoding for page in pages}  # all of them are looked at
        # of these, each image may be as large as the page
        return 1 if DELTA_BYTE_ARRAY in encodings else about.step

    def _batches(self, group: int, rows: int) -> Iterator[Any]:
        """Yield the images of a row group in batches of so many rows."""
        import pyarrow.parquet as pq

        leaf = self.columns.leaf
        kept = [] if rows == 1 else [leaf]  # an image that is in many rows is in memory once
        # No prefetch: Arrow's threads abort the process if they access a Python file while the process exits.
        with (
            self.places.open(self._groups[group].file) as raw,
            pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False, read_dictionary=kept) as file,
        ):
            within = [self._groups[group].number]
            for batch in file.iter_batches(rows, row_groups=within, columns=[leaf], use_threads=False):
                yield cells(batch.column(0))


class _Index:
    """Collects the row groups of all files in order, and their labels."""

    def __init__(self, image_column: str) -> None:
        self.image_column = image_column
        self.groups: list[_Group] = []
        self.rows, self.bytes = 0, 0
        self.columns: Columns | None = None
        self.labels: ColumnLabels | None = None

    def add(self, places: DataFiles, number: int) -> None:
        import pyarrow.parquet as pq

        name = places.names[number]
        with table_errors_named(name), places.peek(number) as raw, pq.ParquetFile(raw, pre_buffer=False) as file:
            self._add(file, raw, number, name)

    def _add(self, file: Any, raw: IOBase, number: int, name: str) -> None:
        columns = find_columns(file.schema_arrow, name, self.image_column)
        if self.columns is None:
            self.columns, self.labels = columns, ColumnLabels(columns, name)
        elif columns[:3] != self.columns[:3]:
            cause = f"its columns are {columns.image} and {columns.label}, not {self.columns.image} and "
            raise DataError(f"{name} is another table than the first", cause=f"{cause}{self.columns.label}")
        before, images = self.rows, chunks(raw, columns.leaf)
        for group in range(file.num_row_groups):
            # Not `about.column(...)`: on a damaged file it can crash the process.
            about = file.metadata.row_group(group)
            self._add_group(number, group, about.num_rows, max(about.total_byte_size, 0), images[group][0])
        if columns.label is not None and self.labels is not None:
            labelled, rows = 0, label_rows(raw, columns.label, name)
            for batch in file.iter_batches(rows, columns=[columns.label], use_threads=False):
                self.labels.add(batch.column(0))
                labelled += len(batch)
            if labelled != self.rows - before:
                raise ValueError(f"{labelled} labels for {self.rows - before} rows")

    def _add_group(self, number: int, group: int, rows: int, size: int, images: Chunk) -> None:
        if not 0 <= rows <= _MAX_ROWS:
            raise ValueError(f"row group {group} has {rows} rows")
        self.bytes += size
        if rows:
            step = rows if size <= BATCH_BYTES else max(1, rows * BATCH_BYTES // size)
            step = max(min(step, BATCH_ROWS), rows // _MAX_BATCHES)
            self.groups.append(_Group(self.rows, step, number, group, images))
            self.rows += rows


def parquet_files(root: Path, follow: FollowLinks = "inside") -> tuple[list[Path], tuple[str, ...]]:
    """The Parquet files to read below a folder, sorted, and notes about them; both empty if there are none.

    The layout is that of the Hugging Face hub: splits are named by files (`data/train-00000-of-00002.parquet`) or
    folders (`default/train/0000.parquet`). Files of no split are one dataset.

    Raises:
        DataError: several datasets, or several splits of which none is for training.
    """
    files, outside = _find(root, follow)
    if not files:
        if outside:
            fix = f"{outside} links lead out of the folder: follow them with --data.follow-links all"
            raise DataError(f"no images in {root}", cause="no Parquet file lies in the folder itself", fix=fix)
        return [], ()
    groups: dict[str, list[Path]] = defaultdict(list)
    configs: dict[str, set[str]] = defaultdict(set)
    for path in files:
        split, config = split_of(path.relative_to(root))
        groups[split].append(path)
        configs[split].add(config)
    split, notes = choose_split({name: str(paths[0]) for name, paths in groups.items()}, str(root))
    if split and len(configs[split]) > 1:
        found = ", ".join(repr(name or ".") for name in sorted(configs[split])[:8])
        raise DataError(f"several data sets in {root}", cause=f"there are {found}", fix="give the folder of one")
    return groups[split], notes


def split_of(path: Path) -> tuple[str, str]:
    """The split that a relative path names, as `train`, and the folder of its dataset; both may be empty."""
    if shard := SHARD.fullmatch(path.stem):
        return SPLIT_NAMES.get(shard["split"].lower(), shard["split"]), path.parent.as_posix()
    for place in range(len(path.parts) - 1, -1, -1):
        words = WORD.findall(path.stem.lower() if place == len(path.parts) - 1 else path.parts[place].lower())
        if found := [SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES]:
            return found[0], Path(*path.parts[:place]).as_posix()
    return "", ""


def _find(root: Path, follow: FollowLinks) -> tuple[list[Path], int]:
    """All Parquet files, and how many were left out because they are links that lead out of the folder."""
    found, outside = [], 0
    for name, left_out in walk(root, follow, _is_parquet):
        outside += left_out == OUTSIDE and _is_parquet(name)
        if not left_out:
            found.append(root / os.fsdecode(name))
    return sorted(found), outside


def _is_parquet(name: bytes) -> bool:
    return name.lower().endswith(b".parquet")
