"""Pixels as `.npy` files: the bytes that NumPy writes, without its reader."""

import io
from typing import Literal

import numpy as np
import pytest

from smalti.core.errors import DataError
from smalti.data import npy
from smalti.data.bands import header_of
from smalti.data.decode import decode_bytes


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pixels(height: int = 7, width: int = 5, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (1, 9, 1), (28, 28, 1), (65_501, 1, 1)])
def test_the_file_is_that_of_numpy_and_read_back(shape: tuple[int, int, int]) -> None:
    array = pixels(*shape)
    assert npy.encode(array) == saved(array)
    assert npy.encode(array[::-1]) == saved(np.ascontiguousarray(array[::-1])), "whatever the array lies like"
    assert np.array_equal(npy.decode(npy.encode(array)), array)
    assert npy.decode(npy.encode(array)).flags.writeable


def test_colours_are_those_asked_for_and_the_size_may_be_less() -> None:
    grey, colour = npy.encode(pixels(40, 60, 1)), npy.encode(pixels(40, 60))
    assert np.array_equal(decode_bytes(colour, "x", 3), pixels(40, 60))
    assert np.array_equal(decode_bytes(grey, "x", 3), np.repeat(pixels(40, 60, 1), 3, 2))
    assert decode_bytes(colour, "x", 1).shape == (40, 60, 1)
    assert decode_bytes(colour, "x", 3, 10).shape == (10, 15, 3)
    assert header_of(grey) == ("array", "L", 60, 40)
    assert header_of(colour) == ("array", "RGB", 60, 40)


@pytest.mark.parametrize("type", ["|u1", "<u2", ">u2", "<i2", "<u4", "<i4", "<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_of_every_type_are_read_in_the_byte_order_of_this_machine(type: str, order: Literal["C", "F"]) -> None:
    array = np.asarray(pixels(4, 5, 7), type, order=order)
    found = npy.decode(saved(array))
    assert np.array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.flags.c_contiguous


def test_black_and_white_of_a_type_or_of_the_window() -> None:
    wide = (pixels() // 2).astype(np.uint16) * 257
    assert np.array_equal(decode_bytes(saved(wide), "x", 3), pixels() // 2)
    assert np.array_equal(decode_bytes(saved(wide.astype(np.float32)), "x", 3, None, (0.0, 65535.0)), pixels() // 2)
    assert decode_bytes(saved(wide.astype(np.float32)), "x", 3).max() == 255, "the largest value of each"
    assert header_of(saved(wide)) == ("array", "uint16 x 3", 5, 7)


GOOD = npy.encode(pixels())


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (saved(pixels().astype(np.complex64)), "other values than"),
        (saved(pixels().astype(bool)), "other values than"),
        (saved(pixels()[..., 0]), "an array of 7x5 values; images are H x W x C, C from 1 to 64"),
        (saved(pixels(3, 64, 65)), "an array of 3x64x65 values; images are H x W x C, C from 1 to 64"),
        (saved(pixels(4, 5, 2)), "it has 2 channels, and 3 are wanted"),
        (GOOD[:-1], "104 bytes for 7x5x3 pixels"),
        (GOOD + b"x", "106 bytes for 7x5x3 pixels"),
        (GOOD[:60], "other values than"),
        (GOOD[:8], "other values than"),
        (GOOD.replace(b"(7, 5, 3)", b"(0, 5, 3)"), "105 bytes for 0x5x3 pixels"),
        (GOOD.replace(b"(7, 5, 3)", b"(9999999, 5, 3)")[:128], "other values than|bytes for"),
        (GOOD.replace(b"'|u1'", b"'|O'  "), "other values than"),
        (GOOD.replace(b"False", b"__im "), "other values than"),
        (npy.encode(pixels(1, 200, 3)), "one side is more than 100 times the other"),
    ],
)
def test_another_array_is_no_image(data: bytes, cause: str) -> None:
    with pytest.raises(DataError, match=f"cannot read x; .*({cause})"):
        decode_bytes(data, "x", 3)
