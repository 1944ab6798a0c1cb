"""The operations of a pickle, one after the other; nothing is done with them here."""

import struct
from collections.abc import Iterator
from io import BytesIO
from pickletools import opcodes
from typing import TypeAlias

Argument: TypeAlias = int | float | str | tuple[str, str] | None

_NAMES = {operation.code.encode("latin-1"): operation.name for operation in opcodes}
_NUMBERS = {
    **{"BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d"},
    **{"BINPUT": "<B", "BINGET": "<B", "LONG_BINPUT": "<I", "LONG_BINGET": "<I"},
    **{"PROTO": "<B", "FRAME": "<Q"},
}
_TEXTS = {"BINUNICODE": "<I", "SHORT_BINUNICODE": "<B"}


def operations(stream: BytesIO) -> Iterator[tuple[str, Argument]]:
    """Name, as `pickletools` has it, and argument of every operation, until STOP, behind which `stream` is left.

    Only the arguments of operations that saving a network writes are read; others come with None, and what follows
    them makes no sense.

    Raises:
        ValueError: the stream ends, or holds no pickle.
    """
    name = ""
    while name != "STOP":
        name = _NAMES.get(_bytes(stream, 1), "")
        if not name:
            raise ValueError("it holds no pickle")
        yield name, _argument(stream, name)


def _argument(stream: BytesIO, name: str) -> Argument:
    if name in _NUMBERS:
        return _number(stream, _NUMBERS[name])
    if name in _TEXTS:
        return _bytes(stream, int(_number(stream, _TEXTS[name]))).decode("utf-8", "surrogatepass")
    if name == "LONG1":
        return int.from_bytes(_bytes(stream, int(_number(stream, "<B"))), "little", signed=True)
    if name in ("GLOBAL", "INST"):
        module, member = (stream.readline().decode("utf-8").rstrip("\n") for _ in range(2))
        return module, member
    return None


def _number(stream: BytesIO, layout: str) -> int | float:
    number: int | float = struct.unpack(layout, _bytes(stream, struct.calcsize(layout)))[0]
    return number


def _bytes(stream: BytesIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise ValueError("it is cut off")
    return data
