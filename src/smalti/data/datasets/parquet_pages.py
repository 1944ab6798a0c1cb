"""How large the pages of a Parquet file are unpacked, by their own headers, before any of them is.

Arrow unpacks a page into as much memory as its header says, and refuses one that holds more. What the end of the file
says of the size of its row groups binds nobody.
"""

from collections.abc import Iterator
from io import IOBase
from typing import Any, NamedTuple, cast

from smalti.core.errors import DataError
from smalti.data.decode import MAX_BYTES

DELTA_BYTE_ARRAY = 7
"""Number of the encoding whose values share what they begin with, so that a small page has many large values."""

_RATIO = 64
"""How many times larger than what is packed a page of images may be, if it is larger than one image may be."""
_LABELS, _LABEL_ROWS = 1 << 24, 65_536
"""Labels of a row group, and rows of a batch, at most."""
_LABEL_BYTES, _LABEL_LENGTH = 64 << 20, 2048
"""Bytes of a page of labels at most, and of a label in the mean."""
_OVERHEAD = 1024
"""Bytes of a page besides its values: which of them are null."""
_FOOTER, _MAGIC = 8, b"PAR1"
_HEADER_SIZES = (1 << 12, 1 << 16, 1 << 24)
"""Bytes in which a header is looked for, one after the other: statistics in it may be large."""
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_DEPTH = 16


class Chunk(NamedTuple):
    """The pages of one column in one row group: position and length in bytes."""

    start: int
    length: int


class Page(NamedTuple):
    """A page, by its header: bytes packed and unpacked, values and nulls, number of their encoding."""

    packed: int
    unpacked: int
    values: int
    encoding: int
    is_dictionary: bool


def chunks(file: IOBase, column: str) -> list[list[Chunk]]:
    """For each row group, where the pages of a column are; of a list or struct, those of all its leaves.

    Args:
        column: the name of a column, or the path of a leaf as `image.bytes`.

    Raises:
        ValueError, LookupError: the end of the file is damaged.
    """
    end = file.seek(-_FOOTER, 2)
    tail = _read(file, _FOOTER)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > end:
        raise ValueError("its end is not that of a Parquet file")
    file.seek(end - length)
    try:
        groups = _Compact(_read(file, length)).struct()[4]
        return [[_chunk(about[3], end) for about in group[1] if _is_of(about[3][3], column)] for group in groups]
    except (TypeError, AttributeError) as error:
        raise ValueError("its end is damaged") from error


def image_pages(file: IOBase, chunk: Chunk, name: str) -> Iterator[Page]:
    """The pages of a column of images.

    Raises:
        DataError: one is larger than its images may be, or out of all proportion to what is packed.
        ValueError, LookupError: a header is damaged.
    """
    for page in _pages(file, chunk):
        most = min(page.values * MAX_BYTES, max(MAX_BYTES, _RATIO * page.packed)) + _OVERHEAD
        if page.unpacked > most:
            size = f"{page.packed / 2**20:.1f} MiB would be {page.unpacked >> 20} MiB unpacked"
            raise DataError(f"cannot read {name}", cause=f"a page of {size}; at most {most >> 20}")
        yield page


def label_rows(file: IOBase, column: str, name: str) -> int:
    """How many rows of a column of labels fit into memory at once, however often a text of its dictionary occurs.

    Raises:
        DataError: a page is too large for labels, or has too many.
        ValueError, LookupError: the file is damaged.
    """
    shared = 1  # bytes of a page whose texts may each occur in every row
    for chunk in (chunk for group in chunks(file, column) for chunk in group):
        values = 0
        for page in _pages(file, chunk):
            if page.unpacked > min(_LABEL_BYTES, _OVERHEAD + _LABEL_LENGTH * page.values):
                raise _no_labels(name, column, f"a page of {page.unpacked >> 10} KiB for {page.values} values")
            if page.is_dictionary or page.encoding == DELTA_BYTE_ARRAY:
                shared = max(shared, page.unpacked)
            values += 0 if page.is_dictionary else page.values
        if values > _LABELS:
            raise _no_labels(name, column, f"{values} values in a row group")
    return max(1, min(_LABEL_ROWS, _LABEL_BYTES // shared))


def _no_labels(name: str, column: str, what: str) -> DataError:
    cause, fix = f"column {column} has {what}: too large for labels", "rename the column if it holds none"
    return DataError(f"cannot read the labels of {name}", cause=cause, fix=fix)


def _pages(file: IOBase, chunk: Chunk) -> Iterator[Page]:
    position = chunk.start
    while position < chunk.start + chunk.length:
        header, size = _header(file, position)
        try:
            kind, unpacked, packed = header[1], header[2], header[3]
            about = header.get({_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind, 0), {})
            encoding = about.get(4 if kind == _DATA_V2 else 2, 0)
            page = Page(packed, unpacked, about.get(1, 0), encoding, kind == _DICTIONARY)
            damaged = min(page) < 0
        except (TypeError, AttributeError) as error:
            raise ValueError("a page is damaged") from error
        if damaged:
            raise ValueError("a page of a negative size")
        yield page
        position += size + page.packed


def _header(file: IOBase, position: int) -> tuple[dict[int, Any], int]:
    """The header of the page at a position, and its length in bytes."""
    for most in _HEADER_SIZES:
        file.seek(position)
        reader = _Compact(data := file.read(most))
        try:
            return reader.struct(), reader.at
        except IndexError:
            if len(data) < most:
                break
    raise ValueError("the header of a page is cut off")


def _chunk(about: dict[int, Any], end: int) -> Chunk:
    data, dictionary, length = about[9], about.get(11, 0), about[7] if about[5] else 0
    start = dictionary if 0 < dictionary < data else data
    if not 0 <= start <= start + length <= end:
        raise ValueError("a column is outside of it")
    return Chunk(start, length)


def _is_of(path: list[bytes], column: str) -> bool:
    name = column.encode(errors="surrogateescape")
    return path[0] == name or b".".join(path) == name


def _read(file: IOBase, size: int) -> bytes:
    data = cast(bytes, file.read(size))
    if len(data) != size:
        raise ValueError("it is cut off")
    return data


class _Compact:
    """Reads structs of Thrift's compact protocol, in which Parquet writes what it says of itself."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The values of a struct by the number of their field.

        Raises:
            IndexError: it goes on behind the end.
            ValueError: it is none.
        """
        found, field = dict[int, Any](), 0
        while kind := self._byte():
            step = kind >> 4
            field = field + step if step else self._signed()
            found[field] = kind & 15 == 1 if kind & 15 < 3 else self._value(kind & 15, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEPTH:
            raise ValueError("it is nested too deep")
        match kind:
            case 1 | 2 | 3:  # a boolean in a list, and a byte
                return self._byte()
            case 4 | 5 | 6:
                return self._signed()
            case 7:
                return self._bytes(8)
            case 8:
                return self._bytes(self._unsigned())
            case 9 | 10:
                head = self._byte()
                length = head >> 4 if head < 0xF0 else self._unsigned()
                return [self._value(head & 15, depth + 1) for _ in range(length)]
            case 12:
                return self.struct(depth + 1)
        raise ValueError(f"type {kind} is none of Parquet's")

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _bytes(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self.data):
            raise IndexError("it ends before")
        return self.data[self.at - size : self.at]

    def _unsigned(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("a number is too long")

    def _signed(self) -> int:
        number = self._unsigned()
        return number >> 1 ^ -(number & 1)
