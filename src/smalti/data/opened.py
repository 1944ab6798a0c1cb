"""Image files opened with Pillow: within the limits, and with no pixels decoded yet."""

import ctypes
from contextlib import suppress
from functools import cache

from PIL import Image, _imaging
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from smalti.core.files import POINTER, is_pointer
from smalti.data.formats import FormatError, check_size, open_image, size_before_decoding

_ORIENTATION = 0x0112
_NO_MODE = "unknown pixel mode"
"""What Pillow says of TIFFs with values or channels that it has no mode for."""


class NoModeError(Exception):
    """A TIFF that Pillow has no mode for."""


def open_checked(data: bytes) -> ImageFile:
    """The Pillow reader for this content, whose size is within the limits, with no pixels decoded yet.

    Raises:
        FormatError: it is of no format that is read, or beyond a limit.
        NoModeError: a TIFF with values or channels that Pillow has no mode for.
    """
    if not data:
        raise FormatError("the file is empty")
    if is_pointer(data):
        raise FormatError(POINTER)
    if (claimed := size_before_decoding(data)) is not None:
        check_size(*claimed)
    try:
        image = open_image(data)
    except SyntaxError as error:
        if str(error) == _NO_MODE or isinstance(error.__cause__, IndexError):  # more bands than modes have
            raise NoModeError from error
        raise
    check_size(*image.size)
    if isinstance(image, TiffImageFile):
        _silence_libtiff()
    return image


@cache
def _silence_libtiff() -> None:
    """Have libtiff say nothing: it writes to standard error by itself what Pillow raises as an exception too."""
    with suppress(OSError, AttributeError):  # another build of Pillow, which then goes on writing
        library = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a file, 1 (upright) to 8."""
    try:
        turn = image.getexif().get(_ORIENTATION)
    except Exception:  # broken EXIF is common and says nothing about the pixels
        return 1
    return int(turn) if isinstance(turn, int) and 1 <= turn <= 8 else 1
