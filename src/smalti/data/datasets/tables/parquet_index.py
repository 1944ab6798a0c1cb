"""Where the rows of Parquet files are: a line for each row group, several for a large one; and their labels."""

from array import array
from typing import Any

from smalti.core.errors import DataError
from smalti.data.datasets.remote.data_files import DataFiles
from smalti.data.datasets.tables.columns import ColumnLabels, Columns, find_columns

CACHE_BYTES = 256 << 20
"""Decoded images kept in memory, in each process that reads."""

PART_BYTES = 64 << 20
"""Row groups above this are decoded in parts of about this size."""

_COSTLY_BYTES = 16 << 20
_SLIM_BYTES = 1000
_MAX_ROWS, _MAX_PARTS = 1 << 31, 10_000


class Parts:
    """Collects the parts of all files, in their order: first row, length, file, row group."""

    def __init__(self) -> None:
        self.first, self.starts, self.sizes = array("q"), array("q"), array("q")
        self.files, self.groups = array("i"), array("i")
        self.rows, self.bytes = 0, 0
        self.columns: Columns | None = None
        self.labels: ColumnLabels | None = None

    def add(self, places: DataFiles, number: int) -> None:
        """Read what a file says about itself, and its labels."""
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        name = places.names[number]
        try:
            with places.peek(number) as raw, pq.ParquetFile(raw, pre_buffer=False) as file:
                self._add(file, number, name)
        except (OSError, ValueError, LookupError, pa.ArrowException) as error:
            raise DataError(f"cannot read {name}", cause=why(error), fix="check --data") from error

    def _add(self, file: Any, number: int, name: str) -> None:
        columns = find_columns(file.schema_arrow, name)
        if self.columns is None:
            self.columns, self.labels = columns, ColumnLabels(columns, name)
        elif columns[:3] != self.columns[:3]:
            cause = f"its columns are {columns.image} and {columns.label}, not {self.columns.image} and "
            raise DataError(f"{name} is another table than the first", cause=f"{cause}{self.columns.label}")
        start = 0
        for group in range(file.num_row_groups):
            # Not `about.column(...)`: what it says of a damaged file can end the process.
            about = file.metadata.row_group(group)
            start += self._add_group(number, group, start, about.num_rows, max(about.total_byte_size, 0))
        if columns.label is not None and self.labels is not None:
            labelled = 0
            for batch in file.iter_batches(65_536, columns=[columns.label], use_threads=False):
                self.labels.add(batch.column(0))
                labelled += len(batch)
            if labelled != start:
                raise ValueError(f"{labelled} labels for {start} rows")

    def _add_group(self, number: int, group: int, start: int, rows: int, size: int) -> int:
        if not 0 <= rows <= _MAX_ROWS:
            raise ValueError(f"row group {group} has {rows} rows")
        step = rows if size <= PART_BYTES else max(1, rows * PART_BYTES // size, rows // _MAX_PARTS)
        for begin in range(0, rows, max(step, 1)):
            count = min(step, rows - begin)
            fields = (self.first, self.starts, self.sizes, self.files, self.groups)
            for field, value in zip(fields, (self.rows, start + begin, count, number, group), strict=True):
                field.append(value)
            self.rows += count
        self.bytes += size
        return rows

    @property
    def slim(self) -> bool:
        """Whether rows are so small that they may hold no images at all."""
        return self.bytes < _SLIM_BYTES * self.rows

    def cost(self) -> tuple[str, ...]:
        """What reading at random will cost, where it is much."""
        mean = self.bytes // len(set(zip(self.files, self.groups, strict=True)))
        if self.bytes <= CACHE_BYTES or mean < _COSTLY_BYTES:
            return ()
        text = f"row groups of {mean >> 20} MB: an image read at random costs one; `smalti prepare` makes a fast copy"
        return (text,)


def why(error: Exception) -> str:
    """What pyarrow or the system says is wrong, in one line."""
    return (
        getattr(error, "strerror", None) or f"damaged: {(str(error).splitlines() or [type(error).__name__])[0][:200]}"
    )
