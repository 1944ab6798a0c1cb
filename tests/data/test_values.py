"""What files mean by their values: 16 and 32 bits, signed and inverted ones, transparent colours, and value windows."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.core.errors import DataError
from smalti.data.decode import decode_bytes
from smalti.data.reading import value_notes
from tests.data.test_decode import chunk, encoded, png, tiff

INVERTED, STRAIGHT = 0, 1
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
RAMP = np.array([0, 1000, 30000, 65535])


def grey_tiff(values: np.ndarray | bytes, bits: int, photometric: int = STRAIGHT, kind: int = UNSIGNED) -> bytes:
    """A TIFF of one row; 12-bit values come packed."""
    pixels = values if isinstance(values, bytes) else values.tobytes()
    width = len(pixels) * 8 // bits
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 279: len(pixels), 339: kind}
    return tiff({tag: (value,) for tag, value in tags.items()}, pixels)


def row(data: bytes, channels: int = 1, window: tuple[float, ...] | None = None) -> list[int]:
    """The first channel of the only row."""
    return decode_bytes(data, "a", channels, window=window)[0, :, 0].tolist()


def test_a_16_bit_grey_png_with_a_transparent_value_is_white_there_alone() -> None:
    clear = chunk(b"tRNS", struct.pack(">H", 30000))
    data = png(4, 1, b"\0" + RAMP.astype(">u2").tobytes(), 16, before=clear)
    assert row(data) == [0, 4, 255, 255] == row(data, 3)


def test_the_transparent_value_of_a_grey_png_of_two_bits_counts_in_these() -> None:
    data = png(4, 1, bytes([0, 0b00011011]), 2, before=chunk(b"tRNS", struct.pack(">H", 2)))
    assert row(data) == [0, 85, 255, 255]


def test_a_transparent_colour_of_16_bits_is_refused() -> None:
    colours = np.repeat(RAMP, 3).astype(">u2").tobytes()
    data = png(4, 1, b"\0" + colours, 16, 2, chunk(b"tRNS", struct.pack(">3H", 30000, 30000, 30000)))
    with pytest.raises(DataError, match="transparent colour of 16 bits"):
        decode_bytes(data, "a", 3)


def test_a_16_bit_tiff_in_which_white_is_zero_is_not_inverted() -> None:
    assert row(grey_tiff(RAMP.astype("<u2"), 16)) == [0, 4, 117, 255]
    assert row(grey_tiff((65535 - RAMP).astype("<u2"), 16, INVERTED)) == [0, 4, 117, 255]


@pytest.mark.parametrize(("kind", "dtype"), [(UNSIGNED, "<u4"), (FLOAT, "<f4")])
def test_a_32_bit_tiff_in_which_white_is_zero_is_refused_and_not_called_damaged(kind: int, dtype: str) -> None:
    with pytest.raises(DataError, match="white is zero") as error:
        decode_bytes(grey_tiff(RAMP.astype(dtype), 32, INVERTED, kind), "a", 1)
    assert "damaged" not in str(error.value)


def test_a_12_bit_tiff_is_white_at_4095() -> None:
    assert row(grey_tiff(bytes.fromhex("000800fff7ff"), 12)) == [0, 128, 255, 127]  # 0, 2048, 4095, 2047


def test_unsigned_32_bits_have_no_sign() -> None:
    values = np.array([0, 2**31 - 1, 2**31, 2**32 - 1], "<u4")
    assert row(grey_tiff(values, 32)) == [0, 127, 128, 255]


def test_negative_values_of_16_bits_are_refused_without_a_window() -> None:
    data = grey_tiff(np.array([-100, 0, 50, 100], "<i2"), 16, kind=SIGNED)
    with pytest.raises(DataError, match=r"values from -100 on.*window"):
        decode_bytes(data, "a", 1)
    assert row(data, window=(-100.0, 100.0)) == [0, 128, 191, 255]


@pytest.mark.parametrize(("format_name", "channels"), [("PNG", 1), ("PNG", 3), ("JPEG", 3), ("BMP", 1)])
def test_a_window_for_deeper_files_leaves_8_bits_as_they_are(format_name: str, channels: int) -> None:
    grey = np.repeat(np.arange(0, 256, 51, dtype=np.uint8), 8)[None].repeat(8, 0)
    data = encoded(Image.fromarray(grey), format_name)
    assert row(data, channels, (40.0, 3865.0)) == row(data, channels)
    assert row(data, channels, (0.0, 51.0))[-8:] == [255] * 8
    assert row(grey_tiff(grey[:1], 8), 1, (40.0, 3865.0)) == grey[0].tolist()


def test_signed_16_bits_without_negative_values_end_at_the_largest_one() -> None:
    assert row(grey_tiff(np.array([0, 32767], "<i2"), 16, kind=SIGNED)) == [0, 255]


def test_the_fourth_channel_of_a_bmp_is_its_alpha_unless_it_is_empty() -> None:
    picture = np.zeros((2, 3, 4), np.uint8)
    picture[0, :, 3] = 0, 51, 255
    picture[1, :, 3] = 255
    assert decode_bytes(encoded(Image.fromarray(picture), "BMP"), "a", 1)[..., 0].tolist() == [[255, 204, 0], [0] * 3]
    picture[..., 3] = 0
    assert not decode_bytes(encoded(Image.fromarray(picture), "BMP"), "a", 3).any()


def notes_of(low: int, high: int, channels: int) -> list[str]:
    rng = np.random.default_rng(0)
    return value_notes(torch.from_numpy(rng.integers(low, high + 1, (8, channels, 16, 16)).astype(np.uint8)))


def test_what_is_unusual_about_values_is_said() -> None:
    assert notes_of(0, 255, 3) == notes_of(0, 255, 1) == notes_of(60, 120, 3) == []
    assert "use 5.9% of their range; --data.window auto" in notes_of(0, 15, 1)[0]
    assert "has the value 0 of 255: there is nothing to learn" in notes_of(0, 0, 3)[0]
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(4, 3, 16, 16)
    assert value_notes(grey)[0].startswith("every image is grey, its three channels are the same; one is enough")


def test_some_images_that_are_nearly_black_among_others_are_named() -> None:
    images = torch.randint(0, 256, (20, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert value_notes(images) == []
    images[::5] //= 16
    [note] = value_notes(images)
    assert note == "20% of these images are nearly black; smalti check says whether --data.window mends it"
