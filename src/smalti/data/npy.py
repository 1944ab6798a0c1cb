"""Pixels as the bytes of an `.npy` file, without NumPy's own reader, because that evaluates the header."""

import re

import numpy as np
from jaxtyping import UInt8

MAGIC = b"\x93NUMPY\x01\x00"
_START = 128  # offset of the pixels; NumPy pads its headers to a multiple of 64 bytes
_HEADER = re.compile(rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d{1,9}), (\d{1,9}), ([13])\), \} *\n")


def encode(pixels: UInt8[np.ndarray, "H W C"]) -> bytes:
    """The bytes that `numpy.save` writes for an image with C = 1 or 3."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {pixels.shape}, }}".encode()
    length = _START - len(MAGIC) - 2
    return MAGIC + length.to_bytes(2, "little") + header.ljust(length - 1) + b"\n" + pixels.tobytes()


def shape(data: bytes) -> tuple[int, int, int]:
    """H, W and C of a file that `encode` could have written.

    Raises:
        ValueError: `encode` could not have written it, or it has more or fewer bytes than its header says.
    """
    found = _HEADER.fullmatch(data, len(MAGIC) + 2, _START)
    if found is None:
        raise ValueError("an array of other values than H x W x 1 or 3 bytes")
    height, width, channels = map(int, found.groups())
    if len(data) - _START != height * width * channels or not height * width:
        raise ValueError(f"{len(data) - _START} bytes for {height}x{width}x{channels} pixels")
    return height, width, channels


def decode(data: bytes) -> UInt8[np.ndarray, "H W C"]:
    """The pixels; raises ValueError as `shape` does."""
    return np.frombuffer(data, np.uint8, offset=_START).reshape(shape(data)).copy()
