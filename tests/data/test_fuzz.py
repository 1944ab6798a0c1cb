"""Damaged image files by the thousand (G30): an image or one DataError each, soon, and no memory is lost."""

import contextlib
import ctypes
import io
import random
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.core.errors import DataError
from smalti.data.decode import decode_bytes

SECONDS = 2.0  # of computing, for one file
LOST, PEAK = 32, 512  # MiB: what all files of a seed may leave behind, and what one may need for a while
SEEDS = 2

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about metadata


def undamaged() -> list[bytes]:
    """Small files of every format, in several of its kinds."""
    rows, columns = np.mgrid[:40, :56]
    picture = Image.fromarray(np.stack([rows * 6, columns * 4, (rows * columns) % 256], -1).astype(np.uint8))
    grey, palette, clear = picture.convert("L"), picture.quantize(32), picture.convert("RGBA")
    clear.putalpha(grey)
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[Image.Image, str, dict[str, object]]] = [
        (picture, "JPEG", {"exif": exif}),
        (picture, "JPEG", {"progressive": True}),
        (picture, "JPEG", {"restart_marker_blocks": 2, "subsampling": 0}),
        (grey, "JPEG", {}),
        (picture.convert("CMYK"), "JPEG", {}),
        (picture, "PNG", {"exif": exif}),
        (palette, "PNG", {"transparency": 3}),
        (clear, "PNG", {}),
        (wide, "PNG", {}),
        (picture, "PNG", {"save_all": True, "append_images": [clear.convert("RGB")]}),
        (picture, "WEBP", {"exif": exif}),
        (clear, "WEBP", {"lossless": True}),
        (picture, "WEBP", {"save_all": True, "append_images": [clear.convert("RGB")]}),
        (palette, "GIF", {"transparency": 3}),
        (palette, "GIF", {"save_all": True, "append_images": [grey]}),
        (picture, "TIFF", {}),
        (picture, "TIFF", {"compression": "tiff_lzw"}),
        (clear, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (wide, "TIFF", {"big_tiff": True}),
        (grey.convert("1"), "TIFF", {"compression": "group4"}),
        (picture, "TIFF", {"compression": "jpeg"}),
        (picture, "BMP", {}),
        (palette, "BMP", {}),
        (picture, "PPM", {}),
    ]
    files = []
    for image, extension, options in kinds:
        file = io.BytesIO()
        image.save(file, extension, **options)
        files.append(file.getvalue())
    return files


def damaged(chance: random.Random, files: list[bytes]) -> bytes:
    """A file with one to eight wounds; half of them in its first bytes, where the structure is."""
    data = bytearray(chance.choice(files))
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        start = chance.randrange(max(1, min(len(data), chance.choice((64, len(data))))))
        length = chance.choice((1, 1, 2, 4, 16, 64))
        wound = chance.choice(("flip", "set", "delete", "insert", "repeat", "splice", "cut"))
        if wound == "flip" and data:
            data[start] ^= 1 << chance.randrange(8)
        elif wound == "set":
            data[start : start + 4] = chance.choice(
                (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x01")
            )
        elif wound == "delete":
            del data[start : start + length]
        elif wound == "insert":
            data[start:start] = chance.randbytes(length)
        elif wound == "repeat":
            data[start:start] = data[start : start + length] * 4
        elif wound == "splice":
            other = chance.choice(files)
            data[start:] = other[chance.randrange(len(other)) :]
        elif wound == "cut":
            del data[chance.randrange(len(data) + 1) :]
    return bytes(data)


def survive(data: bytes, channels: int, shorter_side: int | None) -> bool:
    """Whether it was an image; whatever is neither an image nor a DataError is not caught."""
    try:
        pixels = decode_bytes(data, "a", channels, shorter_side)
    except DataError as error:
        return not str(error)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == channels
    assert 0 < pixels.size <= 300_000_000
    return True


def resident() -> int:
    """MiB in use now, less what the allocator merely keeps for later; 0 where the system does not say."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize() >> 20


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def fuzz(seed: int, number: int) -> int:
    """How many of `number` damaged files are still images."""
    chance, files, images = random.Random(seed), undamaged(), 0
    assert all(survive(data, 3, None) for data in files)
    before, peak_before = resident(), peak()
    for position in range(number):
        data = damaged(chance, files)
        request = chance.choice((1, 3)), chance.choice((None, 16))
        began = time.process_time()
        images += survive(data, *request)
        assert time.process_time() - began < SECONDS, (seed, position)
    assert resident() - before < LOST
    assert peak() - peak_before < PEAK
    return images


@pytest.mark.parametrize("seed", range(SEEDS))
def test_g30_thousands_of_damaged_files(seed: int) -> None:
    images = fuzz(seed, 2000 // SEEDS)
    assert 0.05 < images / (2000 // SEEDS) < 0.95  # the damage is neither total nor none


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_g30_a_million_damaged_files(seed: int) -> None:
    assert fuzz(seed, 100_000) > 0
