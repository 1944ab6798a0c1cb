"""Decode image files to upright uint8 arrays. An invalid image raises DataError."""

import math
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from smalti.core.errors import DataError
from smalti.data import npy
from smalti.data.bands import stored_bands
from smalti.data.formats import READERS, FormatError, NoModeError, check_size, open_checked, orientation
from smalti.data.resize import resized
from smalti.data.tiff import turn_of_tiff
from smalti.data.values import (
    UnclearError,
    Window,
    colour_scale,
    eight_bits,
    for_8_bits,
    mend_transparency,
    stored,
    windowed,
)

try:
    import simplejpeg  # type: ignore[import-untyped]
except ImportError:  # Pillow reads JPEG too, more slowly
    simplejpeg = None

MAX_BYTES = 512 << 20

_PIXELS_LOST = ("remature end", "bad Huffman code", "bad arithmetic code", "instead of RST")  # in libjpeg's warnings
_START_OF_SCAN = 0xDA
_MAY_TURN = (b"Exif\0\0", b"tiff:Orientation", b"eXIf", b"EXIF", b"exif")


def decode(
    path: Path, channels: int, shorter_side: int | None = None, window: Window | None = None
) -> NDArray[np.uint8]:
    """Read an image file.

    Args:
        path: the file; its format is taken from its content, not from its name.
        channels: 1 for grey, 3 for RGB, which become each other; another number is what the file must have.
        shorter_side: where given, shrink so that the shorter side has this many pixels (never enlarge).
        window: the stored values that become 0 and 255; None: the least and the greatest that the format has. One that
            ends above 255 changes no values of 8 bits.

    Returns:
        (H, W, channels), uint8. Rotated as the EXIF tag says; 16-bit values scaled, not clipped; transparency blended
        onto white; the first frame of an animation; colour profiles not applied.

    Raises:
        DataError: the file cannot be read, is no image of a known format, is damaged, or is beyond a limit (bytes,
            pixels, aspect ratio). The limits are checked before memory for pixels is allocated.
    """
    return decode_bytes(read_file(path), str(path), channels, shorter_side, window)


def read_file(path: Path) -> bytes:
    """The bytes of an image file; a `DataError` if it is unreadable, no regular file, or has more than 512 MiB."""
    try:
        return _read(path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(f"cannot read {path}", cause=getattr(error, "strerror", None) or str(error)) from error


def decode_bytes(
    data: bytes, name: str, channels: int, shorter_side: int | None = None, window: Window | None = None
) -> NDArray[np.uint8]:
    """Decode an image from the bytes of its file, as `decode` does; messages contain `name`."""
    if shorter_side is None:
        return decode_scaled(data, name, channels, lambda height, width: 1.0, window)
    # twice the final size: the resize that follows is then close to one from all pixels (docs/paper-map.md)
    pixels = decode_scaled(data, name, channels, lambda height, width: 2 * shorter_side / min(height, width), window)
    return _shrink(pixels, shorter_side)


def decode_scaled(
    data: bytes, name: str, channels: int, least: Callable[[int, int], float], window: Window | None = None
) -> NDArray[np.uint8]:
    """As `decode_bytes`, at full size or, where the format makes that cheaper, at a fraction of it.

    Args:
        least: returns, for height and width of the upright image, the smallest scale that suffices; 1 is full size.
    """
    try:
        return _decoded(data, channels, least, window)
    except (FormatError, UnclearError) as error:
        raise DataError(f"cannot read {name}", cause=str(error)) from None
    except MemoryError as error:
        raise DataError(f"cannot read {name}", cause="not enough memory") from error
    except Exception as error:  # decoders raise many kinds (OSError, SyntaxError, struct.error, ...): all mean bad file
        cause = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read {name}", cause=f"damaged: {cause}") from error


def _decoded(
    data: bytes, channels: int, least: Callable[[int, int], float], window: Window | None
) -> NDArray[np.uint8]:
    """As `decode_scaled`, with the exceptions of the decoders."""
    if channels not in (1, 3) or data.startswith(npy.MAGIC):
        return _bands(data, channels, least, window)
    pixels = _plain_jpeg(data, channels, least)
    if pixels is not None:
        return _in_window(pixels, window)
    try:
        image = open_checked(data)
    except NoModeError:
        return _bands(data, channels, least, window)
    with image:
        # Only a JPEG can be decoded at a fraction; other formats may store their orientation after the pixels.
        if not isinstance(image, JpegImageFile):
            image.load()
        turn = orientation(image)
        width, height = image.size if turn < 5 else image.size[::-1]
        needed = _scaled_size(image.size, least(height, width))
        pixels = _fast_jpeg(data, image, channels, needed)
        pixels = _any_format(image, channels, needed, window, data) if pixels is None else _in_window(pixels, window)
        return np.ascontiguousarray(upright(pixels, turn))


def from_pillow(image: Image.Image, channels: int, window: Window | None = None) -> NDArray[np.uint8]:
    """The pixels of an image that Pillow has opened or made, as `decode` returns those of its file."""
    try:
        if channels not in (1, 3):
            raise FormatError(f"Pillow's images are grey or RGB, and {channels} channels are wanted: give the file")
        return np.ascontiguousarray(upright(_any_format(image, channels, image.size, window), orientation(image)))
    except Exception as error:  # as in `decode_scaled`
        raise DataError("cannot read an image given by Pillow", cause=f"{error}" or type(error).__name__) from error


def _read(path: Path) -> bytes:
    # Without O_NONBLOCK, opening a pipe would wait for someone to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise FormatError("not a regular file")
        if about.st_size > MAX_BYTES:
            raise FormatError(f"{about.st_size} bytes, above the limit of {MAX_BYTES}")
        return file.read(about.st_size)


def _bands(data: bytes, channels: int, least: Callable[[int, int], float], window: Window | None) -> NDArray[np.uint8]:
    """The pixels of an array, or of an image with other channels than one or three, at full size."""
    values, turn = stored_bands(data, channels)
    pixels = np.ascontiguousarray(upright(eight_bits(values, window), turn))
    least(*pixels.shape[:2])
    return _as_channels(pixels, channels)


def _plain_jpeg(data: bytes, channels: int, least: Callable[[int, int], float]) -> NDArray[np.uint8] | None:
    """Decode a JPEG that has no orientation, without parsing its header with Pillow; None for any other file.

    Damaged files are left to the slower path through Pillow, which reports what is wrong.
    """
    if simplejpeg is None or not data.startswith(READERS[JpegImageFile]):
        return None
    about = data[: _end_of_header(data)]
    if any(word in about for word in _MAY_TURN[:2]):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray"):
            return None
        check_size(width, height)
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


def _any_format(
    image: Image.Image, channels: int, least: tuple[int, int], window: Window | None, data: bytes = b""
) -> NDArray[np.uint8]:
    if least != image.size:
        image.draft(None, least)  # JPEG only
    image.load()  # does nothing if already loaded
    if data:
        mend_transparency(image, data)
    values = stored(image)
    if values is not None:
        return _as_channels(eight_bits(values, window), channels)
    pixels = np.array(_opaque(image).convert("L" if channels == 1 else "RGB"))
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    return _in_window(pixels, window, colour_scale(image, data))


def _in_window(pixels: NDArray[np.uint8], window: Window | None, scale: int = 1) -> NDArray[np.uint8]:
    """Pixels of 8 bits in the window of stored values, of which `scale` are one of theirs."""
    fitting = for_8_bits(window and tuple(bound / scale for bound in window))
    return pixels if fitting is None else windowed(pixels, fitting)


def _as_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Grey pixels (H, W) or (H, W, 1), or colours (H, W, 3), in the number of channels asked for."""
    height, width, *depth = pixels.shape
    if (depth or [1]) == [channels]:
        return pixels.reshape(height, width, channels)
    picture = Image.fromarray(pixels if depth == [3] else pixels.reshape(height, width))
    return np.array(picture.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)


def _opaque(image: Image.Image) -> Image.Image:
    """Blend transparency onto white."""
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "LAB" else image  # LAB cannot be converted to grey directly
    colours = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)


def _shrink(pixels: NDArray[np.uint8], shorter_side: int) -> NDArray[np.uint8]:
    height, width, _ = pixels.shape
    scale = shorter_side / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    return resized(pixels, size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def turn_of(data: bytes) -> int:
    """The EXIF orientation of the bytes of an image that has been decoded, 1 (upright) to 8."""
    is_tiff = data.startswith(READERS[TiffImageFile])
    if data.startswith(npy.MAGIC) or not (is_tiff or any(word in data for word in _MAY_TURN)):
        return 1
    try:
        image = open_checked(data)
    except NoModeError:
        return turn_of_tiff(data)
    with image:
        if not isinstance(image, JpegImageFile):
            image.load()  # may be stored after the pixels
        return orientation(image)


def upright(pixels: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """Pixels (H, W) or (H, W, C) as an EXIF orientation, 1 to 8, says that they are shown."""
    if turn in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if turn in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    return pixels.swapaxes(0, 1) if turn in (5, 6, 7, 8) else pixels
