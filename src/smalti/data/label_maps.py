"""Masks of segmentation as files: PNGs of one byte a pixel, the number of its class."""

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL.PngImagePlugin import PngImageFile

from smalti.core.errors import DataError
from smalti.data.decode import read_file
from smalti.functional.pixel_classes import VOID

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FIX = "write PNGs of 8-bit grey, the class of each pixel"
_DEPTH, _COLOURS = 24, 25
"""Where a PNG says how many bits a value has, and what its values are."""
_NOT_GREY = {2: "it has colours", 3: "it has a palette", 4: "it has transparency", 6: "it has colours and transparency"}


@dataclass(frozen=True)
class Numbering:
    """From the ids in files to classes: all ids up to the last one but void, in order.

    Attributes:
        void: the id of pixels without a class; they count nowhere.
        num_classes: how many ids are classes.
    """

    void: int
    num_classes: int

    def __call__(self, ids: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
        """The label map: classes, and VOID."""
        table = np.arange(256) - (np.arange(256) > self.void)
        table[self.void] = VOID
        label_map: UInt8[np.ndarray, "H W"] = table.astype(np.uint8)[ids]
        return label_map

    def require(self, number: int, name: str) -> None:
        """Refuse an id that is neither a class nor void.

        Raises:
            DataError: it is; `name` is the file that it stands in.
        """
        if number != self.void and number - (number > self.void) >= self.num_classes:
            cause = f"there are {self.num_classes} classes, and {self.void} is void"
            fix = "say how many with --task.num-classes or --task.class-names, or which is void with --task.void"
            raise DataError(f"{name} has the id {number}", cause=cause, fix=fix)


def count_classes(present: Iterable[int], void: int) -> int:
    """How many classes there are where the ids in `present` occur: all up to the greatest, void left out."""
    last = max((number for number in present if number != void), default=-1)
    return last + 1 - (void < last)


def read_ids(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """The ids of a mask as they stand in its file.

    Args:
        size: height and width of its image.

    Raises:
        DataError: it cannot be read, is no PNG of 8-bit grey, or has another size.
    """
    data = read_file(path)
    if not data.startswith(_SIGNATURE):
        raise DataError(f"{path} cannot be a mask", cause="it is no PNG", fix=_FIX)
    wrong = _not_ids(data)
    if wrong:
        raise DataError(f"{path} cannot be a mask", cause=wrong, fix=_FIX)
    try:
        mask = PngImageFile(BytesIO(data))
        width, height = mask.size
        ids = np.array(mask) if (height, width) == size else None
    except Exception as error:  # decoders raise many kinds: all mean a bad file
        raise DataError(f"cannot read {path}", cause=f"damaged: {str(error) or type(error).__name__}") from error
    if ids is None:
        cause = f"the mask has {width}x{height} pixels, its image {size[1]}x{size[0]}"
        raise DataError(f"{path} does not lie on its image", cause=cause, fix="make them of one size")
    return ids


def _not_ids(data: bytes) -> str:
    """Why the values of a PNG are no ids of 8 bits, by its header; empty where they are, or where it is cut off."""
    about = data[_DEPTH : _COLOURS + 1]
    if len(about) < 2:
        return ""
    depth, colours = about
    return _NOT_GREY.get(colours, "" if depth == 8 else f"it has {depth} bits a pixel")


def read_class_names(path: Path) -> tuple[str, ...]:
    """A name a line, in the order of ids, void left out.

    Raises:
        DataError: it cannot be read, or a name stands there twice.
    """
    try:
        lines = read_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}", cause="it is no UTF-8 text") from error
    names = tuple(line.strip() for line in lines.splitlines() if line.strip())
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice or not names:
        raise DataError(
            f"{path} cannot name classes", cause=f"{twice[0]} stands there twice" if twice else "it is empty"
        )
    return names
