"""Which image formats are read: suffixes, how files begin, their Pillow readers; images opened, within the limits."""

import ctypes
import re
from contextlib import suppress
from functools import cache
from importlib import import_module
from io import BytesIO

from PIL import Image, _imaging
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from smalti.core.files import POINTER, is_pointer

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
    | {".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl"}
)

# Image.open chooses readers too, but it reports large images through the warning filter, which all threads share.
READERS: dict[type[ImageFile], tuple[bytes, ...]] = {
    JpegImageFile: (b"\xff\xd8\xff",),
    PngImageFile: (b"\x89PNG\r\n\x1a\n",),
    WebPImageFile: (b"RIFF",),
    GifImageFile: (b"GIF87a", b"GIF89a"),
    BmpImageFile: (b"BM",),
    TiffImageFile: (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    PpmImageFile: (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
    Jpeg2KImageFile: (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
}
ARRAYS = frozenset({".npy"})
"""Images where there are no others: beside images, arrays are features or masks."""
MAX_CHANNELS = 64
MAX_PIXELS = 100_000_000
"""Of an image of up to three channels; of more, as many values."""
MAX_ASPECT = 100
IN_CHANS = "--tokenizer.in-chans or --backbone.in-chans"

_AVIF = (b"avif", b"avis")
_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_JXL_BOX, _JXL_STREAM = b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a"
_OTHER_KINDS = dict.fromkeys((b"<!DO", b"<!do", b"<htm", b"<HTM"), "HTML") | dict.fromkeys((b"<svg", b"<?xm"), "SVG")
_OTHER_KINDS |= {b"%PDF": "PDF", b"%!PS": "PostScript", b"PK\3\4": "ZIP", b"\x7fELF": "a program", b"8BPS": "Photoshop"}
_ORIENTATION = 0x0112
_NO_MODE = "unknown pixel mode"
"""What Pillow says of TIFFs with values or channels that it has no mode for."""
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


class FormatError(ValueError):
    """A file is of no format that can be read here, or is beyond a limit; the message leaves out the file name."""


_CHANNELS = re.compile(r"it has (\d+) channels?, and")


def other_channels(found: int, asked: int) -> FormatError:
    """The error for a file that has another number of channels than asked for."""
    wanted = "1 is" if asked == 1 else f"{asked} are"
    return FormatError(f"it has {found} channel{'s' if found > 1 else ''}, and {wanted} wanted")


def channels_remedy(cause: str) -> str:
    """What to write where images have another number of channels, by the cause in `other_channels`; else nothing.

    The number is read from the text because that is all that is kept of bad images: between processes, in
    bad_files.jsonl, and from a run to its resumption.
    """
    found = _CHANNELS.search(cause)
    return (found and f"train with --data.channels {found[1]} and as many {IN_CHANS}") or ""


def check_size(width: int, height: int, channels: int = 3) -> None:
    """Refuse an image with too many pixels, or one side much longer than the other, before memory is allocated."""
    if width * height * max(channels, 3) > 3 * MAX_PIXELS:
        more = f" of {channels} channels" if channels > 3 else ""
        raise FormatError(f"{width}x{height} pixels{more}, above the limit of {MAX_PIXELS * 3 // max(channels, 3)}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise FormatError(f"{width}x{height} pixels: one side is more than {MAX_ASPECT} times the other")


def open_image(data: bytes) -> ImageFile:
    """The Pillow reader for this content, with the header read and, but for JPEG XL, no pixels decoded yet.

    Raises:
        FormatError: the format is not known, or its plugin is not installed.
    """
    for reader, beginnings in READERS.items():
        if data.startswith(beginnings) and (reader is not WebPImageFile or data[8:12] == b"WEBP"):
            return reader(BytesIO(data))
    if data[4:8] == b"ftyp":
        if data[8:12] in _AVIF or (data[8:12] in _HEIF[-2:] and any(brand in data[16:64] for brand in _AVIF)):
            return AvifImageFile(BytesIO(data))
        if data[8:12] in _HEIF:
            return _plugin("pillow_heif.as_plugin", "HeifImageFile", "HEIC")(BytesIO(data))
    if data.startswith((_JXL_BOX, _JXL_STREAM)):
        return _plugin("pillow_jxl.JpegXLImagePlugin", "JXLImageFile", "JPEG XL")(BytesIO(data))
    kind = _OTHER_KINDS.get(data[:4])
    raise FormatError("not an image in a format smalti knows" + (f" (it looks like {kind})" if kind else ""))


def _plugin(module: str, name: str, kind: str) -> type[ImageFile]:
    try:
        reader: type[ImageFile] = getattr(import_module(module), name)
    except ImportError as error:
        raise FormatError(f"{kind} is read with {module.split('.')[0]}: pip install 'smalti[formats]'") from error
    return reader


def size_before_decoding(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG XL by its header, whose reader decodes at once; None for other files.

    Reference: ISO/IEC 18181-1, SizeHeader.
    """
    if data.startswith(_JXL_STREAM):
        stream = data
    elif data.startswith(_JXL_BOX):
        box = max(data.find(b"jxlc") + 4, data.find(b"jxlp") + 8, 0)
        stream = data[box : box + 32]
    else:
        return None
    return _jxl_size(int.from_bytes(stream[2:18], "little"))


def _jxl_size(bits: int) -> tuple[int, int]:
    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = bool(take(1))
    height = side()
    ratio = take(3)
    width = height * _RATIOS[ratio][0] // _RATIOS[ratio][1] if ratio else side()
    return width, height


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
