"""The values of images as stored: of any type, and of any number of channels."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from smalti.core.errors import DataError
from smalti.data import npy
from smalti.data.formats import READERS, NoModeError, check_size, open_checked, open_image, orientation, other_channels
from smalti.data.tiff import bands_of, read_tiff
from smalti.data.values import Stored, colour_scale, stored

_GREY = ("1", "L", "LA", "La", "F")
"""Modes of Pillow; those that begin with I are grey too."""


class Header(NamedTuple):
    """Header data of an image file: format and mode as named by Pillow; the format of an `.npy` file is `array`.

    The mode of what Pillow has none for is the type of its values and the number of channels, as `uint16 x 13`.
    """

    format: str
    mode: str
    width: int
    height: int


def stored_values(data: bytes, name: str, channels: int = 3) -> NDArray[Any]:
    """The values of an image as its file has them: (H, W), or (H, W, C) for colours; grey ones are bright where large.

    Args:
        channels: the number wanted, if it is neither 1 nor 3.

    Raises:
        DataError: as for `decode`.
    """
    try:
        return _values(data, channels)
    except Exception as error:  # as in `decode_scaled`
        raise DataError(f"cannot read {name}", cause=str(error) or type(error).__name__) from error


def _values(data: bytes, channels: int) -> NDArray[Any]:
    if channels not in (1, 3) or data.startswith(npy.MAGIC):
        return stored_bands(data, channels)[0].values
    try:
        image = open_checked(data)
    except NoModeError:
        return read_tiff(data, channels)[0].values
    with image:
        image.load()
        found = stored(image)
        if found is not None:
            return found.values
        return _as_stored(image.convert("L" if image.mode in ("1", "L") else "RGB"), image, data)


def _as_stored(pixels: Image.Image, image: ImageFile, data: bytes) -> NDArray[Any]:
    """The values of pixels in the range of their file: of 16 bits a channel Pillow keeps 8."""
    scale = colour_scale(image, data)
    return np.array(pixels) if scale == 1 else np.asarray(pixels) * np.uint16(scale)


def header_of(data: bytes) -> Header:
    """The header of a file that has been decoded already."""
    if data.startswith(npy.MAGIC):
        height, width, channels = npy.shape(data)
        kind = npy.value_type(data)
        plain = {1: "L", 3: "RGB"}.get(channels) if kind == np.uint8 else None
        return Header("array", plain or f"{kind} x {channels}", width, height)
    try:
        with open_image(data) as image:
            return Header(str(image.format), image.mode, *image.size)
    except SyntaxError:
        values = read_tiff(data, bands_of(data).channels)[0].values
        return Header("TIFF", f"{values.dtype} x {values.shape[2]}", values.shape[1], values.shape[0])


def channels_of(data: bytes, name: str) -> int:
    """The channels of an image, without transparency: 1 for grey, 3 for RGB, or as stored; raises as `decode`."""
    try:
        return _channels(data)
    except Exception as error:  # as in `decode_scaled`
        raise DataError(f"cannot read {name}", cause=str(error) or type(error).__name__) from error


def _channels(data: bytes) -> int:
    if data.startswith(npy.MAGIC):
        return npy.shape(data)[2]
    if data.startswith(READERS[TiffImageFile]):
        return bands_of(data).channels
    with open_checked(data) as image:
        return 1 if image.mode in _GREY or image.mode.startswith("I") else 3


def stored_bands(data: bytes, channels: int) -> tuple[Stored, int]:
    """The values (H, W, C) of an array, a TIFF, or of an image with transparency as a channel; its orientation.

    Raises:
        FormatError: it has another number of channels, where one of the numbers is neither 1 nor 3.
    """
    if data.startswith(npy.MAGIC):
        height, width, found = npy.shape(data)
        check_size(width, height, found)
        if found != channels and not {found, channels} <= {1, 3}:
            raise other_channels(found, channels)
        values = npy.decode(data)
        whole = values.dtype.kind != "f" and values.dtype.itemsize <= 2
        return Stored(values, np.iinfo(values.dtype).max if whole else None), 1
    if data.startswith(READERS[TiffImageFile]):
        return read_tiff(data, channels)
    with open_checked(data) as image:
        if len(image.getbands()) != channels or not image.has_transparency_data:
            raise other_channels(_channels(data), channels)
        image.load()
        values = _as_stored(image, image, data)
        return Stored(values, np.iinfo(values.dtype).max), orientation(image)
