"""Image files of every kind to arrays; then, one by one, what goes wrong with image files in the field (G01 to G29)."""

import functools
import io
import os
import random
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data import decode as decoding
from smalti.data.bands import header_of
from smalti.data.datasets.folder import Folder
from smalti.data.decode import decode, decode_bytes
from smalti.data.formats import EXTENSIONS, size_before_decoding
from smalti.data.load import Data

ORIENTATION = 0x0112
UPRIGHT = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
STORED = {  # how a camera stores the upright picture under each EXIF orientation
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


def smooth(height: int = 24, width: int = 32) -> np.ndarray:
    """A picture that lossy formats keep well."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) * 2], axis=-1).astype(np.uint8)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, rows: bytes, depth: int = 8, kind: int = 0, before: bytes = b"") -> bytes:
    """A PNG chunk by chunk: what its header claims, `before` (other chunks), and rows that may not fit the claim."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_of(side: int) -> bytes:
    """A PNG that claims `side` x `side` pixels and holds none."""
    return png(side, side, b"")


def tiff(tags: dict[int, tuple[int, ...]], pixels: bytes) -> bytes:
    """A TIFF tag by tag (all values as 32-bit integers); tag 273 or 324 (offsets) counts from the start of `pixels`."""
    entries, extra = b"", b""
    directory_end = 8 + 2 + 12 * len(tags) + 4
    start = directory_end + sum(4 * len(values) for values in tags.values() if len(values) > 1)
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *(value + start * (tag in (273, 324)) for value in values))
        if len(values) > 1:
            packed, extra = struct.pack("<I", directory_end + len(extra)), extra + packed
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + extra + pixels


def encoded(picture: Image.Image, extension: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, extension, **options)
    return file.getvalue()


@pytest.fixture(params=["libjpeg-turbo", "Pillow"])
def either_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Pillow":
        monkeypatch.setattr(decoding, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")
    return request.param


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "ppm"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, extension: str, mode: str) -> None:
    path = tmp_path / f"a.{extension}"
    picture = Image.fromarray(UPRIGHT).convert(mode)
    picture.save(path)
    grey, colour = decode(path, 1), decode(path, 3)
    assert grey.dtype == colour.dtype == np.uint8
    assert grey.shape == (6, 10, 1)
    assert np.array_equal(grey[..., 0], np.asarray(picture.convert("L")))
    assert np.array_equal(colour, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_lossy_formats_come_back_closely(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.fromarray(smooth()).save(path, quality=95)
    assert np.abs(decode(path, 3).astype(int) - smooth()).mean() < 4


def test_the_format_is_that_of_the_content_not_of_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(UPRIGHT).save(path, format="PNG")
    assert np.array_equal(decode(path, 3), UPRIGHT)


def test_a_cmyk_jpeg_has_the_right_colours(tmp_path: Path) -> None:
    """G09."""
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path)  # no cyan, all magenta and yellow: red
    assert decode(path, 3)[8, 8].tolist() == pytest.approx([255, 0, 0], abs=6)


def test_a_palette_image_has_the_colours_of_its_palette(tmp_path: Path) -> None:
    """G10, G11."""
    path = tmp_path / "a.png"
    picture = Image.fromarray(smooth()).quantize(16)
    picture.save(path)
    assert np.array_equal(decode(path, 3), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    """G10, G11."""
    path = tmp_path / "a.png"
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    Image.fromarray(pixels, "RGBA").convert(mode).save(path)
    assert decode(path, 3)[0, :, 0].tolist() == pytest.approx([255, 127, 0], abs=1)
    assert decode(path, 1)[0, :, 0].tolist() == pytest.approx([255, 127, 0], abs=1)


@pytest.mark.parametrize("extension", ["png", "gif"])
def test_a_transparent_palette_entry_is_white(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((0, 0), 0)
    picture.save(path, transparency=0)
    pixels = decode(path, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [0, 0, 255]


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, name: str, dtype: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    if dtype == ">u2" and not name.endswith("tiff"):
        pytest.skip("only TIFF comes in two byte orders")
    Image.fromarray(ramp.astype(dtype)).save(tmp_path / name)
    expected = ramp.astype(float) * 255 / 65535
    assert np.abs(decode(tmp_path / name, 1)[..., 0] - expected).max() <= 1
    assert np.abs(decode(tmp_path / name, 3)[..., 2] - expected).max() <= 1


def test_floats_are_scaled_by_their_greatest_value(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 1.0, 2.0]], np.float32)).save(tmp_path / "a.tiff")
    assert decode(tmp_path / "a.tiff", 1)[0, :, 0].tolist() == pytest.approx([0, 127.5, 255], abs=1)


@pytest.mark.parametrize("depth", ["1", "L"])
def test_bilevel_and_grey_become_the_asked_channels(tmp_path: Path, depth: str) -> None:
    Image.new(depth, (5, 4), 255 if depth == "L" else 1).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 1).shape == (4, 5, 1)
    assert decode(tmp_path / "a.png", 3).tolist() == np.full((4, 5, 3), 255).tolist()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_exif_orientation_turns_the_image_upright(tmp_path: Path, orientation: int, channels: int) -> None:
    """G12."""
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(path, exif=oriented(orientation))
    expected = np.asarray(Image.fromarray(UPRIGHT).convert("L" if channels == 1 else "RGB")).reshape(6, 10, channels)
    assert np.array_equal(decode(path, channels), expected)


def test_the_exif_orientation_of_a_jpeg_counts_when_shrinking_too(tmp_path: Path) -> None:
    """G12."""
    path = tmp_path / "a.jpg"
    Image.fromarray(np.rot90(smooth(200, 400))).save(path, exif=oriented(6), quality=95)
    assert decode(path, 3).shape == (200, 400, 3)
    shrunk = decode(path, 3, shorter_side=20)
    assert shrunk.shape == (20, 40, 3)
    expected = Image.fromarray(smooth(200, 400)).resize((40, 20), Image.Resampling.BICUBIC)
    assert np.abs(shrunk.astype(int) - np.asarray(expected)).mean() < 5


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("kind", ["RGBA", "16 bit", "transparent palette"])
def test_the_exif_orientation_counts_for_transparent_and_16_bit_images(
    tmp_path: Path, orientation: int, kind: str
) -> None:
    path = tmp_path / "a.png"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    if kind == "16 bit":
        Image.fromarray(np.asarray(stored.convert("L")).astype(np.uint16) * 257).save(path, exif=oriented(orientation))
        expected = np.asarray(Image.fromarray(UPRIGHT).convert("L"))
    elif kind == "RGBA":
        stored.convert("RGBA").save(path, exif=oriented(orientation))
        expected = np.asarray(Image.fromarray(UPRIGHT).convert("L"))
    else:
        flat = Image.fromarray((np.asarray(stored.convert("L")) // 64).astype(np.uint8), "P")
        flat.putpalette([value for grey in (10, 20, 30, 40) for value in (grey,) * 3])
        flat.save(path, exif=oriented(orientation), transparency=200)
        expected = np.asarray(Image.fromarray(UPRIGHT).convert("L")) // 64 * 10 + 10
    assert np.array_equal(decode(path, 1)[..., 0], expected)


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation_is_read(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    red.save(path, save_all=True, append_images=[blue, blue])
    assert decode(path, 3)[4, 4].tolist() == pytest.approx([255, 0, 0], abs=6)


def test_the_multi_picture_file_of_a_phone_is_read_as_its_first_picture(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "a.mpo", save_all=True, append_images=[blue])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert decode(tmp_path / "a.jpg", 3)[8, 8].tolist() == pytest.approx([254, 0, 0], abs=6)


@pytest.mark.parametrize(("shorter_side", "size"), [(12, (12, 16)), (24, (24, 32)), (100, (24, 32)), (1, (1, 1))])
def test_shrinking_keeps_the_shape_and_never_enlarges(tmp_path: Path, shorter_side: int, size: tuple[int, int]) -> None:
    Image.fromarray(smooth()).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 3, shorter_side).shape == (*size, 3)


@pytest.mark.parametrize("size", [(100, 1), (1, 100)])
def test_thin_images_keep_at_least_a_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(tmp_path / "a.png")
    assert min(decode(tmp_path / "a.png", 1, 1).shape[:2]) == 1


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tiff", "bmp"])
def test_a_truncated_file_is_a_data_error(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot read .*a\."):
        decode(path, 3)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM"])
def test_what_is_no_image_is_a_data_error_with_a_cause(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*a.jpg; .+"):
        decode(tmp_path / "a.jpg", 3)


def test_a_format_outside_the_list_is_a_data_error(tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "a.jpg", format="PCX")
    with pytest.raises(DataError, match="not an image in a format smalti knows"):
        decode(tmp_path / "a.jpg", 3)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        decode(tmp_path / "nowhere.png", 3)
    with pytest.raises(DataError, match="null byte"):
        decode(tmp_path / "no\0where.png", 3)


@pytest.mark.parametrize("side", [10_001, 50_000])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(side))
    with pytest.raises(DataError, match="pixels, above the limit"):
        decode(tmp_path / "bomb.png", 1)


def test_the_extensions_are_lower_case_with_a_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".gif", ".webp", ".tiff", ".tif", ".bmp"} <= EXTENSIONS
    assert all(extension == extension.lower() and extension[0] == "." for extension in EXTENSIONS)


# Reading


def test_bytes_are_decoded_as_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(UPRIGHT), "PNG"))
    assert np.array_equal(decode_bytes((tmp_path / "a.png").read_bytes(), "a", 3), decode(tmp_path / "a.png", 3))
    with pytest.raises(DataError, match="cannot read upload 7; the file is empty"):
        decode_bytes(b"", "upload 7", 3)


def test_the_pixels_may_be_written_to() -> None:
    for extension in ("PNG", "JPEG"):
        for shorter_side in (None, 4):
            pixels = decode_bytes(encoded(Image.fromarray(smooth()), extension), "a", 3, shorter_side)
            assert pixels.flags.writeable
            assert pixels.flags.c_contiguous


def test_a_pipe_and_a_folder_are_data_errors_and_nothing_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"pipe\.png; not a regular file"):
        decode(tmp_path / "pipe.png", 3)
    with pytest.raises(DataError, match=r"folder\.png; (not a regular file|Is a directory)"):
        decode(tmp_path / "folder.png", 3)


def test_a_file_above_the_limit_on_bytes_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(decoding.MAX_BYTES + 1)  # a hole: takes no room on disk
    with pytest.raises(DataError, match="bytes, above the limit of"):
        decode(tmp_path / "a.png", 3)


def test_pillow_does_not_fill_truncated_images_with_grey() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


# JPEG: two decoders, one result


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", [1, 7])
def test_both_decoders_of_jpeg_agree(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], mode: str, channels: int, orientation: int
) -> None:
    pytest.importorskip("simplejpeg")
    data = encoded(Image.fromarray(smooth(90, 130)).convert(mode), "JPEG", exif=oriented(orientation), **options)
    fast = decode_bytes(data, "a", channels).astype(int)
    fast_shrunk = decode_bytes(data, "a", channels, 20).astype(int)
    monkeypatch.setattr(decoding, "simplejpeg", None)
    difference = np.abs(fast - decode_bytes(data, "a", channels))
    assert difference.mean() < 0.1
    assert difference.max() <= (2 if channels == 3 else 12)  # grey: as stored, or from colours that were clipped
    shrunk = decode_bytes(data, "a", channels, 20)
    assert fast_shrunk.shape == shrunk.shape
    assert np.abs(fast_shrunk - shrunk).mean() < 1


def test_a_common_jpeg_is_left_to_the_fast_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    monkeypatch.setattr(decoding, "_any_format", None)
    decoded = decode_bytes(encoded(Image.fromarray(smooth()), "JPEG"), "a", 3)
    assert decoded.shape == smooth().shape
    assert np.abs(decoded.astype(int) - smooth()).mean() < 3


@pytest.mark.parametrize("shorter_side", [7, 50, 100, 199])
@pytest.mark.usefixtures("either_decoder")
def test_a_scaled_decode_looks_like_a_full_decode_and_a_resize(shorter_side: int) -> None:
    data = encoded(Image.fromarray(smooth(200, 300)), "JPEG", quality=95)
    full = Image.fromarray(decode_bytes(data, "a", 3))
    shrunk = decode_bytes(data, "a", 3, shorter_side)
    assert shrunk.shape[0] == shorter_side
    assert shrunk.shape[1] == pytest.approx(300 * shorter_side / 200, abs=0.6)
    expected = np.asarray(full.resize(shrunk.shape[1::-1], Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(shrunk - expected).mean() < (1 if shorter_side >= 50 else 3)


@pytest.mark.usefixtures("either_decoder")
def test_harmless_bytes_between_segments_do_not_matter() -> None:
    data = encoded(Image.fromarray(smooth()), "JPEG")
    padded = data[:-2] + bytes(16) + data[-2:]  # libjpeg: extraneous bytes before marker
    assert np.array_equal(decode_bytes(padded, "a", 3), decode_bytes(data, "a", 3))
    assert np.array_equal(decode_bytes(data + b"a film by a phone" * 99, "a", 3), decode_bytes(data, "a", 3))


def test_many_threads_decode_as_one_does() -> None:
    pictures = [encoded(Image.fromarray(smooth(60 + i, 80)), ("JPEG", "PNG", "WEBP")[i % 3]) for i in range(24)]
    alone = [decode_bytes(data, "a", 3, 32) for data in pictures]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda data: decode_bytes(data, "a", 3, 32), pictures * 4))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 4, together, strict=True))


# What goes wrong in the field


def test_g01_an_empty_file() -> None:
    with pytest.raises(DataError, match="the file is empty"):
        decode_bytes(b"", "a", 3)


@pytest.mark.parametrize("progressive", [False, True])
def test_g02_g04_a_jpeg_cut_anywhere_is_never_silently_grey(either_decoder: str, progressive: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG", progressive=progressive)
    end = len(data) if either_decoder == "libjpeg-turbo" else len(data) - 2  # Pillow lets a missing last marker pass
    for length in np.linspace(3, end - 1, 100).astype(int):
        with pytest.raises(DataError, match="damaged"):
            decode_bytes(data[:length], "a", 3)


def test_g02_a_cut_jpeg_with_an_end_marker_is_not_silently_grey_either() -> None:
    pytest.importorskip("simplejpeg")  # Pillow alone does not notice
    data = encoded(Image.fromarray(UPRIGHT).resize((64, 48)), "JPEG")
    for length in np.linspace(3, len(data) - 12, 100).astype(int):
        with pytest.raises(DataError, match="damaged"):
            decode_bytes(data[:length] + b"\xff\xd9", "a", 3)


def test_g03_a_flipped_bit_in_a_png(tmp_path: Path) -> None:
    data = bytearray(encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)), "PNG"))
    whole = decode_bytes(bytes(data), "a", 1)
    body = data.index(b"IDAT") + 4
    size = int.from_bytes(data[body - 8 : body - 4], "big")
    for position in range(body, body + size, 37):
        damaged = data.copy()
        damaged[position] ^= 4
        with pytest.raises(DataError, match="damaged"):
            decode_bytes(bytes(damaged), "a", 1)
    data[body + size] ^= 4  # the checksum alone: the pixels are sound, and zlib's own checksum says so
    assert np.array_equal(decode_bytes(bytes(data), "a", 1), whole)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html>", r" \(it looks like HTML\)"),
        (b"<html><body>404", r" \(it looks like HTML\)"),
        (b"PK\3\4" + bytes(30), r" \(it looks like ZIP\)"),
        (b"\x7fELF" + bytes(30), r" \(it looks like a program\)"),
        (b"only words", "$"),
        (b"RIFF\0\0\0\0WAVEfmt ", "$"),
    ],
)
def test_g05_other_files_named_jpg(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=f"not an image in a format smalti knows{kind}"):
        decode(tmp_path / "a.jpg", 3)


def test_g06_a_jpeg_named_png(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(smooth()), "JPEG", quality=95))
    assert np.abs(decode(tmp_path / "a.png", 3).astype(int) - smooth()).mean() < 4


def test_g07_every_16_bit_value_of_a_grey_and_a_colour_png() -> None:
    ramp = np.arange(65536).astype(">u2").reshape(256, 256)
    rows = b"".join(b"\0" + row.tobytes() for row in ramp)
    assert np.array_equal(decode_bytes(png(256, 256, rows, 16), "a", 1)[..., 0], np.floor(ramp / 257 + 0.5))
    rows = b"".join(b"\0" + row.repeat(3).tobytes() for row in ramp)
    colour = decode_bytes(png(256, 256, rows, 16, 2), "a", 3)
    assert np.abs(colour - (ramp / 257)[..., None]).max() < 1  # Pillow drops the low byte of colours


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_g08_floats_that_are_no_numbers(bad: float) -> None:
    values = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    values[1, 2] = bad
    with pytest.raises(DataError, match="values that are not finite"):
        decode_bytes(encoded(Image.fromarray(values), "TIFF"), "a", 3)


def test_g08_negative_and_large_values(tmp_path: Path) -> None:
    floats = encoded(Image.fromarray(np.array([[-5, 0, 10]], np.float32)), "TIFF")
    assert decode_bytes(floats, "a", 1).ravel().tolist() == [0, 0, 255]
    integers = encoded(Image.fromarray(np.array([[-5, 100_000, 200_000]], np.int32)), "TIFF")
    assert decode_bytes(integers, "a", 1).ravel().tolist() == [0, 128, 255]
    assert not decode_bytes(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), "a", 1).any()


@pytest.mark.parametrize("ink", [(0, 255, 255, 0), (255, 0, 255, 0), (0, 0, 0, 128), (40, 90, 10, 30)])
@pytest.mark.parametrize("encoder", ["CMYK", "YCCK"])
def test_g09_cmyk_and_ycck_jpeg(ink: tuple[int, ...], encoder: str) -> None:
    picture = Image.new("CMYK", (16, 16), ink)
    if encoder == "CMYK":
        data = encoded(picture, "JPEG", quality=95)
    else:
        simplejpeg = pytest.importorskip("simplejpeg")
        data = simplejpeg.encode_jpeg(255 - np.array(picture), 95, "CMYK")  # stored inverted, as Adobe does
        assert data[data.index(b"Adobe") + 11] == 2
    cyan, magenta, yellow, black = (value / 255 for value in ink)
    expected = [255 * (1 - part) * (1 - black) for part in (cyan, magenta, yellow)]
    assert decode_bytes(data, "a", 3)[8, 8].tolist() == pytest.approx(expected, abs=6)
    assert decode_bytes(data, "a", 3, 4)[2, 2].tolist() == pytest.approx(expected, abs=6)


def test_g10_premultiplied_grey() -> None:
    tags = {256: (2,), 257: (1,), 258: (8, 8), 259: (1,), 262: (1,), 273: (0,), 277: (2,), 279: (4,), 338: (1,)}
    data = tiff(tags, bytes([0, 128, 100, 255]))  # grey 0 at half opacity; grey 100, opaque
    assert Image.open(io.BytesIO(data)).mode == "La"
    assert decode_bytes(data, "a", 1).ravel().tolist() == pytest.approx([127, 100], abs=1)


def test_g11_the_colours_hidden_under_full_transparency_do_not_show() -> None:
    hidden = np.zeros((4, 4, 4), np.uint8)
    hidden[..., 0] = 255
    for extension in ("PNG", "TIFF"):
        assert (decode_bytes(encoded(Image.fromarray(hidden), extension), "a", 3) == 255).all()


def exif_of(entries: bytes, count: int) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, count) + entries


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about the EXIF
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0no TIFF at all",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        exif_of(b"", 65535),
        exif_of(struct.pack("<HHII", 0x0112, 3, 1, 99) + struct.pack("<I", 8), 1),  # the next directory is this one
        exif_of(struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8), 1),
        exif_of(struct.pack("<HHII", 0x0112, 2, 0xFFFFFFFF, 8), 1),
        exif_of(struct.pack("<HHII", 0x010E, 2, 60000, 20), 1) + bytes(60000),
    ],
)
@pytest.mark.parametrize("extension", ["JPEG", "PNG"])
def test_g13_broken_exif_is_ignored(exif: bytes, extension: str) -> None:
    plain = decode_bytes(encoded(Image.fromarray(smooth()), extension), "a", 3)
    began = time.process_time()
    assert np.array_equal(decode_bytes(encoded(Image.fromarray(smooth()), extension, exif=exif), "a", 3), plain)
    assert time.process_time() - began < 1


def test_g13_a_megabyte_of_exif() -> None:
    data = encoded(Image.fromarray(smooth()), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", 65000) + b"Exif\0\0" + bytes(64992)
    began = time.process_time()
    assert np.array_equal(decode_bytes(data[:2] + segment * 17 + data[2:], "a", 3), decode_bytes(data, "a", 3))
    assert time.process_time() - began < 1


@pytest.mark.parametrize("profile", [b"no profile", bytes(1 << 20)])
@pytest.mark.parametrize("extension", ["JPEG", "PNG", "WEBP"])
def test_g14_a_broken_or_huge_colour_profile_is_ignored(profile: bytes, extension: str) -> None:
    options = {"lossless": True} if extension == "WEBP" else {}
    picture = Image.fromarray(smooth())
    plain = decode_bytes(encoded(picture, extension, **options), "a", 3)
    assert np.array_equal(decode_bytes(encoded(picture, extension, icc_profile=profile, **options), "a", 3), plain)


@pytest.mark.parametrize("extension", ["GIF", "PNG", "WEBP", "TIFF"])
def test_g15_no_frame_but_the_first_is_decoded(extension: str) -> None:
    frames = [Image.new("RGB", (300, 300), (i, 255 - i, i)) for i in range(60)]
    one = encoded(frames[0], extension)
    many = encoded(frames[0], extension, save_all=True, append_images=frames[1:])
    assert np.abs(decode_bytes(many, "a", 3).astype(int) - decode_bytes(one, "a", 3)).max() <= 4
    assert _seconds(lambda: decode_bytes(many, "a", 3)) < 10 * _seconds(lambda: decode_bytes(one, "a", 3)) + 0.01


def _seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return min(times)


def bmp_header(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def jpeg_header(width: int, height: int, precision: int = 8) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0") + 4
    data[frame : frame + 5] = struct.pack(">BHH", precision, height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        png_of(20_000),
        bmp_header(20_000, 20_000),
        jpeg_header(20_000, 20_000),
        b"P6 20000 20000 255\n",
        b"GIF89a" + struct.pack("<HHBBB", 20_000, 20_000, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0;",
        tiff(
            {256: (20_000,), 257: (20_000,), 258: (8,), 259: (8,), 262: (1,), 273: (0,), 279: (9,)}, zlib.compress(b"0")
        ),
        b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0" + 2 * (19_999).to_bytes(3, "little"),
    ],
)
def test_g16_a_kilobyte_that_claims_400_million_pixels(data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"cannot read a; "):
        decode_bytes(data, "a", 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_g17_our_limit_decides_and_pillow_does_not_warn() -> None:
    rows = (b"\0" + bytes(1188)) * 9500
    assert decode_bytes(png(9500, 9500, rows, depth=1), "a", 1, 16).shape == (
        16,
        16,
        1,
    )  # 90 million; Pillow warns at 89


@pytest.mark.parametrize("size", [(1, 65500), (65500, 1), (101, 1)])
def test_g18_an_aspect_ratio_beyond_100(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="one side is more than 100 times the other"):
        decode_bytes(encoded(Image.new("L", size), "PNG"), "a", 3)


@pytest.mark.parametrize("shorter_side", [None, 1, 64])
def test_g18_one_pixel(shorter_side: int | None) -> None:
    for extension in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        assert decode_bytes(encoded(Image.new("RGB", (1, 1)), extension), "a", 3, shorter_side).shape == (1, 1, 3)


def outcome(data: bytes) -> str:
    try:
        decode_bytes(data, "a", 1)
    except DataError as error:
        return "too large" if "too large" in error.cause else "damaged"
    return "ok"


@functools.cache
def zeros(mebibytes: int = 200) -> bytes:
    """Compressed zeros, made without having them all in memory: the tests look at its peak."""
    packer, one = zlib.compressobj(), bytes(1 << 20)
    return b"".join(packer.compress(one) for _ in range(mebibytes)) + packer.flush()


@pytest.mark.parametrize(("kind", "head"), [(b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")])
def test_g19_a_bomb_in_the_metadata(kind: bytes, head: bytes) -> None:
    bomb = chunk(kind, head + zeros())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert outcome(png(4, 4, bytes(20), before=bomb)) in ("ok", "too large")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


@pytest.mark.parametrize(
    "content",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b'<?xml version="1.0"?><svg/>',
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"8BPS\0\1" + bytes(40),
        b"DDS |\0\0\0" + bytes(140),
        b"SIMPLE  =                    T" + bytes(80),
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),  # FPX
        b"\0\0\0\0\0\0\0\4" + bytes(260),  # MCIDAS
    ],
)
def test_g20_formats_that_are_refused_and_no_program_is_started(
    monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(DataError, match="not an image in a format smalti knows"):
        decode_bytes(content, "a", 3)


def test_g21_a_tiled_tiff_whose_tiles_stick_out() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)
    tiles = [whole[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32)]
    tags = {256: (37,), 257: (19,), 258: (8,), 259: (1,), 262: (1,), 277: (1,), 322: (16,), 323: (16,)}
    data = tiff(tags | {324: tuple(range(0, 6 * 256, 256)), 325: (256,) * 6}, b"".join(tiles))
    assert np.array_equal(decode_bytes(data, "a", 1)[..., 0], whole[:19, :37])


def test_g21_a_big_tiff_and_one_of_1000_pages() -> None:
    picture = Image.fromarray(UPRIGHT)
    assert np.array_equal(decode_bytes(encoded(picture, "TIFF", big_tiff=True), "a", 3), UPRIGHT)
    page = encoded(Image.new("L", (4, 4), 7), "TIFF")
    pages = encoded(Image.new("L", (4, 4), 7), "TIFF", save_all=True, append_images=[Image.new("L", (4, 4))] * 999)
    assert np.array_equal(decode_bytes(pages, "a", 1), decode_bytes(page, "a", 1))
    assert _seconds(lambda: decode_bytes(pages, "a", 1)) < 1


def test_g21_a_deflate_bomb_in_a_tiff_yields_what_its_header_says_or_an_error() -> None:
    tags: dict[int, tuple[int, ...]] = {256: (8,), 257: (8,), 258: (8,), 259: (8,), 262: (1,), 273: (0,)}
    bomb = zeros()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert outcome(tiff(tags | {279: (len(bomb),)}, bomb)) in ("ok", "damaged")
    assert time.process_time() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


@pytest.mark.parametrize(
    "data",
    [jpeg_header(8, 8, 12), jpeg_header(8, 0), jpeg_header(0, 8), jpeg_header(8, 8).replace(b"\xff\xc0", b"\xff\xc3")],
    ids=["12 bits", "no height", "no width", "lossless"],
)
@pytest.mark.usefixtures("either_decoder")
def test_g22_a_jpeg_of_a_rare_kind_is_an_error_with_a_reason(data: bytes) -> None:
    with pytest.raises(DataError, match=r"damaged: .{5,}"):
        decode_bytes(data, "a", 3)


@pytest.mark.usefixtures("either_decoder")
def test_g22_a_thousand_restart_markers() -> None:
    picture = Image.fromarray(smooth(256, 256))
    data = encoded(picture, "JPEG", restart_marker_blocks=1, subsampling=0)
    assert sum(data.count(bytes([255, 0xD0 + number])) for number in range(8)) > 1000
    expected = decode_bytes(encoded(picture, "JPEG", subsampling=0), "a", 3)
    assert np.array_equal(decode_bytes(data, "a", 3), expected)


@pytest.mark.parametrize(
    ("content", "kind", "module"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC", "pillow_heif"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL", "pillow_jxl"),
    ],
)
def test_g23_formats_whose_plugin_is_missing_are_named_with_the_command(
    content: bytes, kind: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (module, f"{module}.as_plugin", f"{module}.JpegXLImagePlugin"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=rf"{kind} is read with {module}: pip install 'smalti\[formats\]'"):
        decode_bytes(content, "a", 3)


@pytest.mark.parametrize("format", ["AVIF", "JPEG2000", "HEIF", "JXL"])
def test_g23_the_formats_of_phones_and_archives(format: str) -> None:
    options: dict[str, Any] = {"JXL": {"lossless": True}, "JPEG2000": {}}.get(format, {"quality": 95})
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if format == "JXL":
        pytest.importorskip("pillow_jxl")
    data = encoded(Image.fromarray(smooth()), format, **options)
    found = decode_bytes(data, "a", 3)
    assert found.shape == smooth().shape
    assert np.abs(found.astype(int) - smooth()).mean() < 4
    assert decode_bytes(data, "a", 1, 12).shape == (12, 16, 1)
    assert header_of(data) == (format, "RGB", 32, 24)
    with pytest.raises(DataError, match=r"cannot read a; damaged") as error:
        decode_bytes(data[: len(data) // 2], "a", 3)
    assert "\n" not in str(error.value)


def test_g23_a_jpeg_xl_that_claims_many_pixels_is_refused_before_it_is_decoded() -> None:
    bits = (3 << 1) | ((1 << 30) - 1) << 3 | (1 << 33)  # not small, 30 bits of height, as wide as high
    for data in (
        b"\xff\x0a" + bits.to_bytes(16, "little"),
        b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x1ejxlc\xff\x0a" + bits.to_bytes(16, "little"),
    ):
        with pytest.raises(DataError, match="above the limit"):
            decode_bytes(data, "a", 3)


@pytest.mark.parametrize("size", [(8, 8), (256, 256), (300, 7), (1920, 1080), (4, 3), (1000, 800)])
def test_g23_the_size_of_a_jpeg_xl_is_known_from_its_header(size: tuple[int, int]) -> None:
    pytest.importorskip("pillow_jxl")
    assert size_before_decoding(encoded(Image.new("RGB", size), "JXL")) == size


def fill(folder: Path, number: int) -> None:
    for index in range(number):
        Image.fromarray(smooth()).save(folder / f"{index:03}.png")


def test_g24_files_that_change_between_listing_and_reading(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    source = Folder(tmp_path, 3)
    (tmp_path / "001.png").unlink()
    os.truncate(tmp_path / "002.png", 60)
    for index, reason in ((1, "No such file"), (2, "damaged")):
        with pytest.raises(DataError, match=reason):
            source[index]
    assert np.array_equal(source[0].image, source[3].image)


def test_g25_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 1)
    (tmp_path / "000.png").chmod(0)
    if os.access(tmp_path / "000.png", os.R_OK):  # root may read everything

        def refuse(_: Path) -> bytes:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(decoding, "_read", refuse)
    with pytest.raises(DataError, match=r"000\.png; Permission denied$"):
        decode(tmp_path / "000.png", 3)


def test_g26_nothing_but_bad_files_stops_soon(tmp_path: Path) -> None:
    for index in range(500):
        (tmp_path / f"{index}.jpg").write_bytes(b"\xff\xd8\xff" + random.Random(index).randbytes(500))
    began = time.process_time()
    with pytest.raises(DataError, match="500 of 500 images cannot be read"):
        Data(path=str(tmp_path)).load(Log())
    assert time.process_time() - began < 5


def test_g27_a_share_of_bad_files_above_the_limit_stops_with_the_exit_code_of_data(tmp_path: Path) -> None:
    fill(tmp_path, 8)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 10 .*the file is empty") as caught:
        Data(path=str(tmp_path), side=16).load(Log())
    assert caught.value.exit_code == 3


def test_g28_images_of_one_colour(tmp_path: Path) -> None:
    for extension in ("PNG", "JPEG", "WEBP", "GIF"):
        pixels = decode_bytes(encoded(Image.new("RGB", (40, 30), (10, 10, 10)), extension), "a", 3, 8)
        assert np.abs(pixels.astype(int) - 10).max() <= 1


def test_g29_a_bad_file_has_the_same_reason_every_time() -> None:
    data = encoded(Image.fromarray(smooth()), "JPEG")[:-60]
    reasons = set()
    for _ in range(3):
        with pytest.raises(DataError) as caught:
            decode_bytes(data, "a", 3)
        reasons.add(str(caught.value))
    assert len(reasons) == 1


@pytest.mark.parametrize("compression", ["tiff_deflate", "tiff_lzw"])
def test_the_library_of_tiff_files_says_nothing_by_itself(compression: str, capfd: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 251).save(
        buffer, "TIFF", compression=compression
    )
    damaged = bytearray(buffer.getvalue())
    damaged[20:200] = b"\xff" * 180
    with pytest.raises(DataError, match="decoder error"):
        decode_bytes(bytes(damaged), "a.tif", 3)
    assert capfd.readouterr() == ("", "")
