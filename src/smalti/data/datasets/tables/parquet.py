"""Parquet files whose rows are images: random access through a bounded number of decoded row groups."""

import io
from collections.abc import Iterator
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.remote.data_files import DataFiles
from smalti.data.datasets.tables.columns import cells, require_extra
from smalti.data.datasets.tables.dataset import TableDataset, without_bytes
from smalti.data.datasets.tables.lru import Recent
from smalti.data.datasets.tables.parquet_index import CACHE_BYTES, Parts, why


class _Walk(NamedTuple):
    """Where the reader of a large row group stands: the group's first part, the next part to come, the parts."""

    begin: int
    at: int
    parts: Iterator[Any]


class Parquet(TableDataset):
    """The images of Parquet files, in their order. Only the column of images and that of labels are ever read.

    A row group, or a part of a large one, is decoded at once, and those used last are kept. Reading in order decodes
    each once; reading at random decodes one for nearly every image, unless all of them fit.
    """

    kind = "parquet"

    def __init__(self, places: DataFiles, channels: int, log: Log | None = None) -> None:
        require_extra("pyarrow", places.names[0])
        super().__init__(places, channels)
        parts = Parts()
        with (log or Log()).progress("index files", len(places)) as bar:
            for number in range(len(places)):
                parts.add(places, number)
                bar.update(number + 1)
        assert parts.columns is not None
        assert parts.labels is not None
        if not parts.rows:
            raise DataError(f"no images in {places.names[0]}", cause="the table has no rows", fix="check --data")
        self.columns = parts.columns
        self.labels, self.classes, notes = parts.labels.build()
        self.notes = (*self.columns.notes, *notes, *parts.cost())
        self._first, self._files, self._groups = np.array(parts.first), np.array(parts.files), np.array(parts.groups)
        self._starts, self._sizes = np.array(parts.starts), np.array(parts.sizes)
        is_begin = np.diff(self._files, prepend=-1).astype(bool) | np.diff(self._groups, prepend=-1).astype(bool)
        self._begins = np.maximum.accumulate(np.where(is_begin, np.arange(len(is_begin)), 0))
        self._length = parts.rows
        self._start()
        if parts.slim and (some := self._decoded(0)).null_count == len(some):
            raise without_bytes(places.names[0], self.columns.image, len(some))

    def _start(self) -> None:
        """What belongs to one process."""
        self._decoded: Recent[int, Any] = Recent(self._decode, lambda part: int(part.nbytes), CACHE_BYTES)
        self._walk: _Walk | None = None
        self._walking = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_decoded", "_walk", "_walking")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __len__(self) -> int:
        return self._length

    def place(self, index: int) -> tuple[int, int]:
        part, row = self._part(index)
        return int(self._files[part]), int(self._starts[part]) + row

    def cell(self, index: int) -> Any:
        part, row = self._part(index)
        images = self._decoded(part)
        if row >= len(images):
            raise DataError(f"cannot read {self.name(index)}", cause="damaged: its row group is shorter than it says")
        return images[row]

    def _part(self, index: int) -> tuple[int, int]:
        position = range(len(self))[index]
        part = int(np.searchsorted(self._first, position, side="right")) - 1
        return part, position - int(self._first[part])

    def _decode(self, part: int) -> Any:
        """The images of a part."""
        import pyarrow as pa  # type: ignore[import-untyped]

        begin = int(self._begins[part])
        try:
            if part == begin and (part + 1 == len(self._begins) or self._begins[part + 1] > begin):
                return next(self._parts_of(part))
            with self._walking:
                return self._walk_to(part, begin)
        except (OSError, ValueError, StopIteration, pa.ArrowException) as error:
            raise DataError(f"cannot read {self.places.names[self._files[part]]}", cause=why(error)) from error

    def _walk_to(self, part: int, begin: int) -> Any:
        """A part of a large row group, which can be read forwards only: the reader stays open, ready for the next."""
        walk, self._walk = self._walk, None
        if walk is None or walk.begin != begin or walk.at > part:
            walk = _Walk(begin, begin, self._parts_of(begin))
        for _ in range(part - walk.at):
            next(walk.parts)
        found = next(walk.parts)
        self._walk = walk._replace(at=part + 1)
        return found

    def _parts_of(self, part: int) -> Iterator[Any]:
        """The images of the row group that begins with a part, a part at a time."""
        file, rows = int(self._files[part]), int(self._sizes[part])
        with self.places.open(file) as raw:
            batches = _batches(raw, self.columns.leaf, rows, int(self._groups[part]))
            yield from _of_length((cells(batch.column(0)) for batch in batches), rows)


def _batches(raw: io.FileIO, leaf: str, rows: int, group: int) -> Iterator[Any]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    # Reading ahead happens on threads of Arrow, which abort the process if they want a Python file while it ends.
    with pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False) as file:
        yield from file.iter_batches(max(rows, 1), row_groups=[group], columns=[leaf], use_threads=False)


def _of_length(pieces: Iterator[Any], length: int) -> Iterator[Any]:
    """Arrays of any length as chunked arrays of one."""
    import pyarrow as pa

    kept: list[Any] = []
    missing = length
    for piece in pieces:
        while len(piece) >= missing:
            yield pa.chunked_array([*kept, piece[:missing]])
            piece, kept, missing = piece[missing:], [], length
        if len(piece):
            kept.append(piece)
            missing -= len(piece)
    if kept:
        yield pa.chunked_array(kept)
