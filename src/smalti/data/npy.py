"""Pixels as the bytes of an `.npy` file, without NumPy's own reader, because that evaluates the header."""

import re
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from numpy.typing import NDArray

from smalti.data.formats import MAX_CHANNELS, FormatError

MAGIC = b"\x93NUMPY\x01\x00"
_START = 128  # offset of the pixels that are written; NumPy pads its headers to a multiple of 64 bytes
_FIRST = len(MAGIC) + 2
_MAX_HEADER = 256
_HEADER = re.compile(
    rb"\{'descr': '(?P<type>[|<>](u1|[ui][24]|f[248]))', 'fortran_order': (?P<order>True|False),"
    rb" 'shape': \((?P<shape>\d{1,9}(, \d{1,9})*),?\), ?\} *\n"
)


class _Array(NamedTuple):
    type: np.dtype[Any]
    shape: tuple[int, int, int]
    start: int
    columns_first: bool


def encode(pixels: UInt8[np.ndarray, "H W C"]) -> bytes:
    """The bytes that `numpy.save` writes for an image."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {pixels.shape}, }}".encode()
    length = _START - len(MAGIC) - 2
    return MAGIC + length.to_bytes(2, "little") + header.ljust(length - 1) + b"\n" + pixels.tobytes()


def shape(data: bytes) -> tuple[int, int, int]:
    """H, W and C of an image.

    Raises:
        FormatError: it is no array H x W x C of numbers, with C at most 64.
        ValueError: it has more or fewer bytes than its header says.
    """
    return _parse(data).shape


def value_type(data: bytes) -> np.dtype[Any]:
    """The type of its values; raises as `shape` does."""
    return _parse(data).type.newbyteorder("=")


def decode(data: bytes) -> Shaped[np.ndarray, "H W C"]:
    """The values in the byte order of this machine; raises as `shape` does."""
    found = _parse(data)
    values: NDArray[Any] = np.frombuffer(data, found.type, offset=found.start)
    values = values.reshape(found.shape[::-1]).T if found.columns_first else values.reshape(found.shape)
    return np.array(values, found.type.newbyteorder("="), order="C")


def _parse(data: bytes) -> _Array:
    start = _FIRST + int.from_bytes(data[len(MAGIC) : _FIRST], "little")
    found = _HEADER.fullmatch(data, _FIRST, min(start, _MAX_HEADER))
    if found is None:
        raise FormatError("an array of other values than H x W x C integers or floats")
    sides = tuple(map(int, found["shape"].split(b",")))
    text, kind = "x".join(map(str, sides)), np.dtype(found["type"].decode())
    if len(sides) != 3 or not 1 <= sides[2] <= MAX_CHANNELS:
        raise FormatError(f"an array of {text} values; images are H x W x C, C from 1 to {MAX_CHANNELS}")
    if len(data) - start != sides[0] * sides[1] * sides[2] * kind.itemsize or not sides[0] * sides[1]:
        raise ValueError(f"{len(data) - start} bytes for {text} pixels")
    return _Array(kind, (sides[0], sides[1], sides[2]), start, found["order"] == b"True")
