"""Decode image files to upright uint8 arrays with one or three channels. An invalid image raises DataError."""

import math
import os
import stat
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from smalti.core.errors import DataError
from smalti.core.files import POINTER, is_pointer
from smalti.data import npy

try:
    import simplejpeg  # type: ignore[import-untyped]
except ImportError:  # Pillow reads JPEG too, more slowly
    simplejpeg = None

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
MAX_BYTES = 512 << 20
MAX_PIXELS = 100_000_000
MAX_ASPECT = 100

# Pillow's readers, by the first bytes of a file. Image.open chooses them too, but it reports large images through the
# warning filter, which all threads share.
_READERS: dict[type[ImageFile], tuple[bytes, ...]] = {
    JpegImageFile: (b"\xff\xd8\xff",),
    PngImageFile: (b"\x89PNG\r\n\x1a\n",),
    WebPImageFile: (b"RIFF",),
    GifImageFile: (b"GIF87a", b"GIF89a"),
    BmpImageFile: (b"BM",),
    TiffImageFile: (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    PpmImageFile: (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
}
FORMATS = tuple(str(reader.format) for reader in _READERS)
_OTHER_KINDS = dict.fromkeys((b"<!DO", b"<!do", b"<htm", b"<HTM"), "HTML") | dict.fromkeys((b"<svg", b"<?xm"), "SVG")
_OTHER_KINDS |= {b"%PDF": "PDF", b"%!PS": "PostScript", b"PK\3\4": "ZIP", b"\x7fELF": "a program", b"8BPS": "Photoshop"}
_OTHER_KINDS |= {b"ftyp": "AVIF or HEIC", b"JXL ": "JPEG XL", b"jP  ": "JPEG 2000"}  # found at byte 4
_PIXELS_LOST = ("remature end", "bad Huffman code", "bad arithmetic code", "instead of RST")  # in libjpeg's warnings
_ORIENTATION = 0x0112
_START_OF_SCAN = 0xDA
_MAY_TURN = (b"Exif\0\0", b"tiff:Orientation")


class _RefusedError(Exception):
    """What is wrong with a file; the message leaves out the file name."""


class Header(NamedTuple):
    """Header data of an image file: format and mode as named by Pillow; the format of an `.npy` file is `array`."""

    format: str
    mode: str
    width: int
    height: int


def decode(path: Path, channels: int, shorter_side: int | None = None) -> NDArray[np.uint8]:
    """Read an image file.

    Args:
        path: the file; its format is taken from its content, not from its name.
        channels: 1 for grey, 3 for RGB.
        shorter_side: where given, shrink so that the shorter side has this many pixels (never enlarge).

    Returns:
        (H, W, channels), uint8. Rotated as the EXIF tag says; 16-bit values scaled, not clipped; transparency blended
        onto white; the first frame of an animation; colour profiles not applied.

    Raises:
        DataError: the file cannot be read, is no image of a known format, is damaged, or is beyond a limit (bytes,
            pixels, aspect ratio). The limits are checked before memory for pixels is allocated.
    """
    return decode_bytes(read_file(path), str(path), channels, shorter_side)


def read_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        DataError: it cannot be read, is no regular file, or has more than 512 MiB.
    """
    try:
        return _read(path)
    except (OSError, ValueError, _RefusedError) as error:  # ValueError: a null byte in the name
        raise DataError(f"cannot read {path}", cause=getattr(error, "strerror", None) or str(error)) from error


def decode_bytes(data: bytes, name: str, channels: int, shorter_side: int | None = None) -> NDArray[np.uint8]:
    """Decode an image from the bytes of its file, as `decode` does.

    Raises:
        DataError: as for `decode`; the message contains `name`.
    """
    if shorter_side is None:
        return decode_scaled(data, name, channels, lambda height, width: 1.0)
    # twice the final size: the resize that follows is then as good as from all pixels
    pixels = decode_scaled(data, name, channels, lambda height, width: 2 * shorter_side / min(height, width))
    return _shrink(pixels, shorter_side)


def decode_scaled(data: bytes, name: str, channels: int, least: Callable[[int, int], float]) -> NDArray[np.uint8]:
    """Decode an image at full size or, where its format makes that cheaper, at a fraction of it.

    Args:
        data: the bytes of the file.
        name: name of the file in messages.
        channels: 1 for grey, 3 for RGB.
        least: returns, for height and width of the upright image, the smallest scale that suffices; 1 is full size.

    Returns:
        (H, W, channels), uint8.

    Raises:
        DataError: as for `decode`; the message contains `name`.
    """
    try:
        pixels = _plain_jpeg(data, channels, least)
        if pixels is not None:
            return pixels
        if data.startswith(npy.MAGIC):
            return _array(data, channels, least)
        with _open(data) as image:
            _check_size(*image.size)
            # Only a JPEG can be decoded at a fraction; other formats may store their orientation after the pixels.
            if not isinstance(image, JpegImageFile):
                image.load()
            turn = orientation(image)
            width, height = image.size if turn < 5 else image.size[::-1]
            needed = _scaled_size(image.size, least(height, width))
            pixels = _fast_jpeg(data, image, channels, needed)
            if pixels is None:
                pixels = _any_format(image, channels, needed)
            return np.ascontiguousarray(_upright(pixels, turn))
    except _RefusedError as error:
        raise DataError(f"cannot read {name}", cause=str(error)) from None
    except MemoryError as error:
        raise DataError(f"cannot read {name}", cause="not enough memory") from error
    except Exception as error:  # decoders raise many kinds (OSError, SyntaxError, struct.error, ...): all mean bad file
        raise DataError(f"cannot read {name}", cause=f"damaged: {str(error) or type(error).__name__}") from error


def from_pillow(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """The pixels of an image that Pillow has opened or made, as `decode` returns those of its file.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        return np.ascontiguousarray(_upright(_any_format(image, channels, image.size), orientation(image)))
    except Exception as error:  # as in `decode_scaled`
        raise DataError("cannot read an image given by Pillow", cause=f"{error}" or type(error).__name__) from error


def header_of(data: bytes) -> Header:
    """The header of a file that has been decoded already."""
    if data.startswith(npy.MAGIC):
        height, width, channels = npy.shape(data)
        return Header("array", "L" if channels == 1 else "RGB", width, height)
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        return Header(str(image.format), image.mode, *image.size)


def _read(path: Path) -> bytes:
    # Without O_NONBLOCK, opening a pipe would wait for someone to write to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise _RefusedError("not a regular file")
        if about.st_size > MAX_BYTES:
            raise _RefusedError(f"{about.st_size} bytes, above the limit of {MAX_BYTES}")
        return file.read(about.st_size)


def _open(data: bytes) -> ImageFile:
    """The Pillow reader for this content, with the header read and no pixels decoded yet."""
    if not data:
        raise _RefusedError("the file is empty")
    for reader, beginnings in _READERS.items():
        if data.startswith(beginnings) and (reader is not WebPImageFile or data[8:12] == b"WEBP"):
            return reader(BytesIO(data))
    if is_pointer(data):
        raise _RefusedError(POINTER)
    kind = _OTHER_KINDS.get(data[:4]) or _OTHER_KINDS.get(data[4:8])
    raise _RefusedError("not an image in a format smalti knows" + (f" (it looks like {kind})" if kind else ""))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _RefusedError(f"{width}x{height} pixels, above the limit of {MAX_PIXELS}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _RefusedError(f"{width}x{height} pixels: one side is more than {MAX_ASPECT} times the other")


def _array(data: bytes, channels: int, least: Callable[[int, int], float]) -> NDArray[np.uint8]:
    """The pixels of an `.npy` file at full size."""
    height, width, stored = npy.shape(data)
    _check_size(width, height)
    least(height, width)
    pixels = npy.decode(data)
    if stored == channels:
        return pixels
    picture = Image.fromarray(pixels[..., 0] if stored == 1 else pixels)
    return np.array(picture.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)


def _plain_jpeg(data: bytes, channels: int, least: Callable[[int, int], float]) -> NDArray[np.uint8] | None:
    """Decode a JPEG that has no orientation, without parsing its header with Pillow; None for any other file.

    Damaged files are left to the slower path through Pillow, which reports what is wrong.
    """
    if simplejpeg is None or not data.startswith(_READERS[JpegImageFile]):
        return None
    about = data[: _end_of_header(data)]
    if any(word in about for word in _MAY_TURN):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray"):
            return None
        _check_size(width, height)
        needed = _scaled_size((width, height), least(height, width))
        return _turbo(data, channels, needed)
    except ValueError:
        return None


def _end_of_header(data: bytes) -> int:
    """Offset of the pixel data of a JPEG; the length of the file where the segments before it are malformed."""
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] not in (b"\xff", b""):
        if data[place + 1] == _START_OF_SCAN:
            return place
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return len(data)


def _scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height of an image scaled by `scale`, as a decoding target."""
    return math.ceil(size[0] * min(scale, 1.0)), math.ceil(size[1] * min(scale, 1.0))


def _turbo(data: bytes, channels: int, least: tuple[int, int]) -> NDArray[np.uint8]:
    colours = "GRAY" if channels == 1 else "RGB"
    return simplejpeg.decode_jpeg(data, colours, min_width=least[0], min_height=least[1], min_factor=2)


def _fast_jpeg(data: bytes, image: ImageFile, channels: int, least: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Decode a common JPEG with libjpeg-turbo to at least the given width and height; None where Pillow is needed."""
    if simplejpeg is None or not isinstance(image, JpegImageFile) or image.mode not in ("L", "RGB"):
        return None
    try:
        return _turbo(data, channels, least)
    except ValueError as error:
        if any(sign in str(error) for sign in _PIXELS_LOST):  # Pillow would fill some of these with grey
            raise
        return None


def _any_format(image: Image.Image, channels: int, least: tuple[int, int]) -> NDArray[np.uint8]:
    if least != image.size:
        image.draft(None, least)  # JPEG only
    image.load()  # does nothing if already loaded
    pixels = np.array(_eight_bit(image).convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Convert wider values to 8 bits, and blend transparency onto white."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_scaled(np.asarray(image)))
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "LAB" else image  # LAB cannot be converted to grey directly
    colours = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)


def _scaled(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale 16-bit values by 1/257. Wider integers and floats have no defined white: their maximum becomes 255."""
    if not np.isfinite(values).all():
        raise _RefusedError("values that are not finite")
    top = float(values.max())
    if values.dtype.kind == "f" or top > 65535:
        return (values.clip(0).astype(np.float64) * (255 / max(top, 1e-12)) + 0.5).astype(np.uint8)
    return ((values.clip(0).astype(np.uint32) + 128) // 257).astype(np.uint8)


def _shrink(pixels: NDArray[np.uint8], shorter_side: int) -> NDArray[np.uint8]:
    height, width, channels = pixels.shape
    scale = shorter_side / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return np.array(picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)).reshape(*size[::-1], channels)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a file, 1 (upright) to 8."""
    try:
        turn = image.getexif().get(_ORIENTATION)
    except Exception:  # broken EXIF is common and says nothing about the pixels
        return 1
    return int(turn) if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _upright(pixels: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    if turn in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if turn in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    return pixels.swapaxes(0, 1) if turn in (5, 6, 7, 8) else pixels
