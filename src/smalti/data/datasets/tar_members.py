"""Lists the members of a tar archive, header by header; nothing is ever extracted.

The standard library's reader keeps every member in memory and trusts the lengths in a header. This one reads only
numbers and names, each header once, always forwards: a damaged or hostile archive can end it, but not make it hang.
"""

import os
from collections.abc import Iterator
from io import BufferedIOBase
from typing import NamedTuple

BLOCK = 512
CUT_OFF = "cut off: the archive ends within it"
SPARSE = "sparse file"
IRREGULAR = "not a regular file"
_MAX_EXTENDED = 1 << 20
"""The maximum size in bytes of a long name or an extended header; real ones have a few hundred."""

_REGULAR = frozenset({b"0", b"\0", b"7"})
_WITHOUT_DATA = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
_FOLDER = b"5"


class DamagedTarError(Exception):
    """A header is invalid, so the members after it cannot be found."""


class Member(NamedTuple):
    """A file in the archive: offset and size of its bytes, and in `left_out` the reason if it must not be used."""

    name: bytes
    offset: int
    size: int
    left_out: str = ""


class _Header(NamedTuple):
    name: bytes
    size: int
    type: bytes


class _Extended(NamedTuple):
    """The fields that a long-name or extended header sets for the member after it."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


def members(file: BufferedIOBase, length: int) -> Iterator[Member]:
    """Yield every member that is not a folder, in the order of the archive of `length` bytes.

    Raises:
        DamagedTarError: the archive is damaged; raised after the members before the damage.
    """
    position, extended = 0, _Extended()
    while position < length:
        block = _read(file, position, BLOCK)
        if block.count(0) == BLOCK:
            return
        header = _parse(block, position)
        data = position + BLOCK
        if header.type in (b"L", b"K", b"x", b"X", b"g"):
            content = _content(file, header, data)
            extended = _extend(extended, header.type, content, position)
            position = data + _padded(header.size)
            continue
        name = header.name if extended.name is None else extended.name
        size = header.size if extended.size is None else extended.size
        if header.type == b"S":
            data = _after_sparse_map(file, block, data, length)
        sparse = header.type == b"S" or extended.sparse
        position = data if header.type in _WITHOUT_DATA else data + _padded(size)
        old_folder = header.type == b"\0" and name.endswith(b"/")
        if header.type != _FOLDER and not old_folder:
            reason = SPARSE if sparse else "" if header.type in _REGULAR else IRREGULAR
            yield Member(name, data, size, CUT_OFF if position > length and data + size > length else reason)
        extended = _Extended()
    raise DamagedTarError("the mark at its end is missing: it is cut off")


def _read(file: BufferedIOBase, position: int, count: int) -> bytes:
    file.seek(position)
    data = file.read(count)
    if len(data) < count:
        raise DamagedTarError(f"it ends within a header at byte {position}")
    return data


def _parse(block: bytes, position: int) -> _Header:
    try:
        claimed = _number(block[148:156])
        size = _number(block[124:136])
    except ValueError as error:
        raise DamagedTarError(f"no header at byte {position}: {error}") from error
    unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    # Some old programs computed the checksum with signed bytes.
    if claimed != unsigned and claimed != unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise DamagedTarError(f"no header at byte {position}: wrong check sum")
    if size < 0:
        raise DamagedTarError(f"header at byte {position}: a size of {size}")
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    return _Header(name, size, block[156:157])


def _number(field: bytes) -> int:
    """Parse a number: octal digits or, if the highest bit is set (for large values), two's complement."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] & 0x80:
        return int.from_bytes(field, "big", signed=True)
    digits = field.split(b"\0", 1)[0].strip()
    if not digits.isdigit() and digits:
        raise ValueError("not a number")
    return int(digits or b"0", 8)


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _content(file: BufferedIOBase, header: _Header, data: int) -> bytes:
    if header.size > _MAX_EXTENDED:
        raise DamagedTarError(f"header at byte {data - BLOCK}: a name of {header.size} bytes")
    return _read(file, data, header.size)


def _extend(before: _Extended, type: bytes, content: bytes, position: int) -> _Extended:
    if type == b"L":
        return before._replace(name=_text(content))
    if type not in (b"x", b"X"):  # a link's target, or defaults for all members: not needed
        return before
    fields = dict(_pax(content, position))
    try:
        size = int(fields[b"size"]) if b"size" in fields else before.size
    except ValueError:
        size = -1
    if size is not None and size < 0:
        raise DamagedTarError(f"header at byte {position}: a size that is no number")
    name = fields.get(b"path", before.name)
    sparse = before.sparse or any(key.startswith(b"GNU.sparse.") for key in fields)
    return _Extended(name.split(b"\0", 1)[0] if name is not None else None, size, sparse)


def _pax(content: bytes, position: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the records `length key=value\\n`, where the length is that of the whole record in bytes."""
    start = 0
    while start < len(content):
        digits = content[start : start + 20].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        record = content[start + len(digits) + 1 : max(start + length - 1, 0)]
        if b"=" not in record or not 0 < length <= len(content) - start:  # a length of 0 would loop forever
            raise DamagedTarError(f"header at byte {position}: damaged extended header")
        key, value = record.split(b"=", 1)
        yield key, value
        start += length


def _after_sparse_map(file: BufferedIOBase, block: bytes, data: int, length: int) -> int:
    """The offset after the sparse map, which old GNU sparse files continue in further blocks before the data."""
    more = block[482] != 0
    while more and data < length:
        more = _read(file, data, BLOCK)[504] != 0
        data += BLOCK
    return data


def is_inside(name: bytes) -> bool:
    """Whether a member's path stays inside the archive's own folder."""
    return not name.startswith((b"/", b"\\")) and b".." not in name.replace(b"\\", b"/").split(b"/")


def plain(name: bytes) -> bytes:
    """A member's path, normalized: without `./`."""
    return os.path.normpath(name) if name else b""
