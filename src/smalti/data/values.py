"""Pixel values as files store them, and as 8 bits: which value is black, which is white, and which are transparent."""

from math import isfinite
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from smalti.core.config import require
from smalti.data.formats import MAX_CHANNELS

Window: TypeAlias = tuple[float, ...]
"""The stored values that become 0 and 255, in between linearly: two for all channels, or two a channel."""
AskedWindow: TypeAlias = Literal["auto"] | Window | None
"""A window, one that is measured on the images, or all values that a format has."""

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2
_PNG, _PNG_DEPTH = b"\x89PNG", 24  # offset of the bits a value


def require_channels(channels: int) -> None:
    """Refuse a number of channels that no image can have."""
    fix = f"use 1 (grey), 3 (RGB), or as many as the images have, at most {MAX_CHANNELS}"
    require(1 <= channels <= MAX_CHANNELS, f"{channels} channels", fix)


def require_window(window: AskedWindow, channels: int) -> None:
    """Refuse a window that is none: of one value, or from a value to a smaller one."""
    if window is None or window == "auto":
        return
    text = " ".join(f"{bound:g}" for bound in window)
    pairs = list(zip(window[::2], window[1::2], strict=False))
    fits = len(window) in (2, 2 * channels) and all(low < high and isfinite(high - low) for low, high in pairs)
    require(fits, f"a value window of {text}", "use MIN MAX, the stored values that become black and white, or auto")


def for_8_bits(window: Window | None) -> Window | None:
    """The window of values of 8 bits: none if it ends above 255, as it is that of deeper files beside them."""
    return None if window is None or max(window) > 255 else window


class UnclearError(ValueError):
    """Values of which it cannot be said what is black and what is white; the message leaves out the file name."""


class Stored(NamedTuple):
    """The values of a grey image or of an array as stored.

    Attributes:
        values: (H, W) or (H, W, C), any real dtype; bright is large.
        white: the value of full brightness; None where the format defines none.
        transparent: (H, W), where the image is transparent; None: nowhere.
    """

    values: NDArray[Any]
    white: float | None
    transparent: NDArray[np.bool_] | None = None


def stored(image: Image.Image) -> Stored | None:
    """The values of an image that are not plain 8-bit ones, else None; raises as `of_tiff`."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits, signed = _first(tags, _BITS, 1), _first(tags, _SAMPLE_FORMAT, 1) == _SIGNED
    if not image.mode.startswith("I") and image.mode != "F":
        return None
    values = np.asarray(image)
    if isinstance(image, TiffImageFile):
        return of_tiff(values, bits, signed, _first(tags, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO)
    clear = image.info.get("transparency") if isinstance(image, PngImageFile) else None
    return Stored(values, 65535, None if clear is None else values == clear)


def _first(tags: Any, tag: int, missing: int) -> int:
    found = tags.get(tag, missing)
    return int(found[0] if isinstance(found, tuple) else found)


def of_tiff(values: NDArray[Any], bits: int, signed: bool, white_is_zero: bool) -> Stored:
    """The values of a TIFF with so many bits each, bright as large; an `UnclearError` if it says not what black is."""
    if white_is_zero and (values.dtype.kind == "f" or bits == 32):
        what = "floats" if values.dtype.kind == "f" else "32-bit integers"
        raise UnclearError(f"a TIFF of {what} in which white is zero: it says not what black is")
    if values.dtype.kind == "f":
        return Stored(values, None)
    if bits == 32:
        return Stored(values if signed else values.view(np.uint32), None)
    if signed:
        return Stored(values.astype(np.int16), 2 ** (bits - 1) - 1)
    white = 2**bits - 1
    return Stored(white - values if white_is_zero else values, white)


def eight_bits(image: Stored, window: Window | None) -> UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W C"]:
    """The values as 0 to 255: those of the window (of `for_8_bits`), else from 0 to white, else from 0 to the largest.

    Raises:
        UnclearError: values are not finite, or there are negative 16-bit ones and no window.
    """
    values = image.values
    if values.dtype == np.uint8:
        window = for_8_bits(window)
        if window is None and image.white == 255:
            return values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UnclearError("values that are not finite")
    if window is None:
        if values.dtype.kind == "i" and values.dtype.itemsize <= 2 and values.min() < 0:
            raise UnclearError(f"values from {values.min()} on, and black is not said: give a value window (window)")
        window = (0.0, _white(image))
    pixels = windowed(values, window)
    if image.transparent is not None:
        pixels[image.transparent] = 255
    return pixels


def _white(image: Stored) -> float:
    top = float(image.values.max())
    if image.white is None:
        # 32-bit integers up to 65535 are 16-bit ones in a wider file
        return 65535.0 if image.values.dtype.kind != "f" and top <= 65535 else max(top, 1e-12)
    return float(image.white)


def windowed(values: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Values (..., C) or (H, W) of any real dtype to 0 ... 255; those outside the window become 0 or 255."""
    if len(window) > 2 or (values.ndim == 3 and values.shape[2] > 3):  # one by one, which takes less memory
        each = window if len(window) > 2 else window * values.shape[2]
        parts = [windowed(values[..., c], each[2 * c : 2 * c + 2]) for c in range(values.shape[-1])]
        return np.stack(parts, axis=-1)
    if values.dtype.kind == "f" or values.dtype.itemsize > 2:
        return _scaled(values.astype(np.float64), window)
    limits = np.iinfo(values.dtype)
    table = _scaled(np.arange(limits.min, limits.max + 1, dtype=np.float64), window)
    return table[values.astype(np.int32) - limits.min]


def _scaled(values: NDArray[np.float64], window: Window) -> NDArray[np.uint8]:
    low, high = window
    return ((values.clip(low, high) - low) * 255 / (high - low) + 0.5).astype(np.uint8)


def is_16_bit(data: bytes) -> bool:
    """Whether a PNG has values of 16 bits, by its header."""
    return data.startswith(_PNG) and data[_PNG_DEPTH] == 16


def colour_scale(image: Image.Image, data: bytes) -> int:
    """Stored values for one of Pillow's: 257 for colours of 16 bits a channel, of which it keeps 8; else 1."""
    if isinstance(image, TiffImageFile):
        return 257 if _first(image.tag_v2, _BITS, 1) == 16 else 1
    return 257 if is_16_bit(data) else 1


def mend_transparency(image: Image.Image, data: bytes) -> None:
    """Put right what Pillow makes of transparency: colours in the bits of a PNG, and the fourth channel of a BMP.

    Raises:
        UnclearError: a transparent colour of 16 bits, of which Pillow keeps 8.
    """
    if isinstance(image, PngImageFile):
        clear, bits = image.info.get("transparency"), data[_PNG_DEPTH]
        if isinstance(clear, tuple) and bits == 16:
            raise UnclearError("a PNG with a transparent colour of 16 bits a channel; save it with 8, or with alpha")
        if isinstance(clear, int) and image.mode == "L" and bits < 8:
            image.info["transparency"] = clear * 255 // (2**bits - 1)
    elif isinstance(image, BmpImageFile) and image.mode == "RGB":
        alpha = _bmp_alpha(image, data)
        if alpha is not None:
            image.putalpha(Image.fromarray(alpha))


def _bmp_alpha(image: Image.Image, data: bytes) -> NDArray[np.uint8] | None:
    """The fourth byte of the pixels of an uncompressed 32-bit BMP; None where all are zero, as where nothing is meant.

    Old headers call it reserved, and what writes transparent BMPs uses it all the same.
    """
    width, height = image.size
    offset, header = (int.from_bytes(data[place : place + 4], "little") for place in (10, 14))
    if header == 12 or data[28:30] != b"\x20\0" or data[30:34] != bytes(4):
        return None
    rows = np.frombuffer(data, np.uint8, width * height * 4, offset).reshape(height, width, 4)
    upside_down = int.from_bytes(data[22:26], "little", signed=True) > 0
    alpha = rows[::-1, :, 3] if upside_down else rows[..., 3]
    return np.ascontiguousarray(alpha) if alpha.any() else None
