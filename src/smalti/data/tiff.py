"""TIFF files: their pages, and the values of what Pillow has no mode for, as of a satellite's bands."""

import logging
import math
import struct
from importlib import import_module
from io import BytesIO
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray

from smalti.data.formats import MAX_CHANNELS, FormatError, check_size, other_channels
from smalti.data.values import Stored, of_tiff

_SUBFILE_TYPE, _REDUCED, _MASK = 254, 1, 4
_PHOTOMETRIC, _ORIENTATION, _SAMPLES, _EXTRA = 262, 274, 277, 338  # tags
_COLOURED = (3, 5, 6, 8)
"""Photometric interpretations that become RGB: palette, CMYK, YCbCr, LAB."""
_ALPHA = (1, 2)
_INTEGERS = {3: ("H", 2), 4: ("I", 4)}
_MAX_INTEGERS = 64
_TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8")
_LOSSLESS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 34925: "LZMA", 50000: "Zstandard"}
_PADDING = 4
"""Values in tiles may be so many times those of the image; those of one tile do not count."""
_SMALL = 1 << 22


class _Layout(NamedTuple):
    """Where a TIFF, classic or big, has its directories: `struct` codes, and places and sizes in bytes."""

    order: str
    offset: str
    number: str
    first: int
    entry: int


def count_pages(data: bytes) -> int:
    """The pages of a TIFF, without previews and masks; 1 for other files and where its directories are damaged."""
    return max(len(_directories(data)), 1)


def page_first(data: bytes, page: int) -> bytes:
    """The bytes of a TIFF in which this page, counted from 0, is the first."""
    layout = _layout(data)
    assert layout is not None
    width = struct.calcsize(layout.offset)
    place = struct.pack(layout.order + layout.offset, _directories(data)[page])
    return data[: layout.first] + place + data[layout.first + width :]


def _layout(data: bytes) -> _Layout | None:
    for mark, order in ((b"II", "<"), (b"MM", ">")):
        if data[:4] == mark + struct.pack(order + "H", 42):
            return _Layout(order, "I", "H", 4, 12)
        if data[:4] == mark + struct.pack(order + "H", 43):
            return _Layout(order, "Q", "Q", 8, 20)
    return None


def _directories(data: bytes) -> list[int]:
    """The offsets of the directories of full-size pages."""
    layout, found, seen = _layout(data), list[int](), set[int]()
    if layout is None:
        return found
    try:
        (place,) = struct.unpack_from(layout.order + layout.offset, data, layout.first)
        while place and place not in seen:
            seen.add(place)
            (count,) = struct.unpack_from(layout.order + layout.number, data, place)
            entries = place + struct.calcsize(layout.number)
            end = entries + count * layout.entry
            (following,) = struct.unpack_from(layout.order + layout.offset, data, end)
            if not _is_preview(data, layout, entries, count):
                found.append(place)
            place = following
    except struct.error:  # the file ends before
        pass
    return found


def _is_preview(data: bytes, layout: _Layout, entries: int, count: int) -> bool:
    kind = _tags(data, layout, entries, count, last=_SUBFILE_TYPE).get(_SUBFILE_TYPE, (0,))
    return bool(kind[0] & (_REDUCED | _MASK))


def _tags(data: bytes, layout: _Layout, entries: int, count: int, last: int) -> dict[int, tuple[int, ...]]:
    """The integers of the tags of a directory up to `last`, in ascending order; a `struct.error` if it is cut off."""
    found, width = dict[int, tuple[int, ...]](), struct.calcsize(layout.offset)
    for place in range(entries, entries + count * layout.entry, layout.entry):
        tag, kind, length = struct.unpack_from(layout.order + "HH" + layout.offset, data, place)
        if tag > last:
            break
        if kind in _INTEGERS and length <= _MAX_INTEGERS:
            code, size = _INTEGERS[kind]
            value = place + 4 + width
            if length * size > width:
                (value,) = struct.unpack_from(layout.order + layout.offset, data, value)
            found[tag] = struct.unpack_from(f"{layout.order}{length}{code}", data, value) or (0,)
    return found


class Bands(NamedTuple):
    """How many channels a page stores, and how many of them are transparency; colours as of ink or palettes are RGB."""

    stored: int
    alpha: int
    colours: int

    @property
    def channels(self) -> int:
        return self.colours or self.stored - self.alpha


def bands_of(data: bytes) -> Bands:
    """The channels of the first full-size page of a TIFF; one where that cannot be read."""
    tags = _first_tags(data)
    alpha = sum(kind in _ALPHA for kind in tags.get(_EXTRA, ()))
    return Bands(tags.get(_SAMPLES, (1,))[0], alpha, 3 if tags.get(_PHOTOMETRIC, (1,))[0] in _COLOURED else 0)


def turn_of_tiff(data: bytes) -> int:
    """The orientation of the first full-size page, 1 (upright) to 8."""
    turn = _first_tags(data).get(_ORIENTATION, (1,))[0]
    return turn if 1 <= turn <= 8 else 1


def _first_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The integers of the tags of the first full-size page; none where they cannot be read."""
    layout, pages = _layout(data), _directories(data)
    if layout is None or not pages:
        return {}
    try:
        (count,) = struct.unpack_from(layout.order + layout.number, data, pages[0])
        return _tags(data, layout, pages[0] + struct.calcsize(layout.number), count, last=_EXTRA)
    except struct.error:
        return {}


def read_tiff(data: bytes, channels: int) -> tuple[Stored, int]:
    """The values (H, W, C) of the bands of a TIFF, or of its pages of one band each, and its orientation.

    Args:
        channels: as many as wanted, or as many as the file has, if both are 1 or 3.

    Raises:
        FormatError: it has another number of channels, is beyond a limit, or is of a kind that is not read.
    """
    bands, pages = bands_of(data), 1
    if channels not in (bands.stored, bands.channels) and not {channels, bands.channels} <= {1, 3}:
        pages = count_pages(data)
        if bands.stored != 1 or pages != channels:
            raise other_channels(bands.channels, channels)
    try:
        reader = import_module("tifffile")
        import_module("imagecodecs")
    except ImportError as error:
        cause = "a TIFF with values or channels of this kind is read with tifffile: pip install 'smalti[formats]'"
        raise FormatError(cause) from error
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it logs, it raises or does not matter
    with reader.TiffFile(BytesIO(data)) as file:
        full = (page for page in file.pages if not page.subfiletype & (_REDUCED | _MASK))
        chosen = list(islice(full, pages))
        for page in chosen:
            _require_readable(page, channels)
        if len({(page.imagelength, page.imagewidth, page.dtype) for page in chosen}) != 1:
            raise FormatError("its pages, which are its channels, differ in size or in the type of their values")
        values = np.concatenate([_values(page) for page in chosen], axis=2)
    kept = values if values.shape[2] == channels else values[..., : bands.stored - bands.alpha]
    signed, white_is_zero = kept.dtype.kind == "i", chosen[0].photometric == 0
    return of_tiff(kept, chosen[0].bitspersample, signed, white_is_zero), turn_of_tiff(data)


def _require_readable(page: Any, channels: int) -> None:
    """Refuse a page by what its tags claim, before memory is allocated for its values."""
    check_size(page.imagewidth, page.imagelength, max(page.samplesperpixel, channels))
    if page.compression not in _LOSSLESS:
        known = ", ".join(dict.fromkeys(_LOSSLESS.values()))
        raise FormatError(f"a TIFF of these channels with compression {int(page.compression)}; read are {known}")
    kind = page.dtype
    if page.imagedepth != 1 or page.samplesperpixel > MAX_CHANNELS or kind is None or kind.str[1:] not in _TYPES:
        raise FormatError("a TIFF with values or channels of a kind that is not read")
    values = page.imagewidth * page.imagelength * page.samplesperpixel
    if math.prod(page.chunks) * math.prod(page.chunked) > _PADDING * values + _SMALL:
        raise FormatError("a TIFF whose tiles are far larger than the image")


def _values(page: Any) -> Shaped[np.ndarray, "H W C"]:
    values: NDArray[Any] = page.asarray(maxworkers=1)
    values = values.reshape(page.shape)
    if page.axes.startswith("S"):
        values = np.moveaxis(values, 0, -1)
    return values.reshape(page.imagelength, page.imagewidth, -1)
