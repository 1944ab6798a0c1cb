"""What the values in mask files mean: which are classes, which palettes are known, and which way up a mask lies."""

from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from smalti.core.config import require
from smalti.core.errors import DataError

AskedIds: TypeAlias = Literal["all", "auto"] | tuple[int, ...]
"""Which ids are classes: all up to the greatest, those that are chosen by what the masks have, or these in order."""
OtherIds: TypeAlias = Literal["refuse", "nearest", "void"]
"""Pixels of other ids, where classes are listed: an error, of the class with the nearest id, or of none."""
MaskTurn: TypeAlias = Literal["auto", "stored", "upright"]
"""How masks of photographs lie that their EXIF tag turns: as the pixels are stored, or as they are shown."""

_MIN_SHARE = 0.05
"""Among values with gaps, of the second most frequent one: rarer ones are those between classes at smooth edges."""
_MAX_LISTED = 12
_TURNED = (5, 6, 7, 8)


class Chosen(NamedTuple):
    """The ids that are classes, in order, and what others are."""

    ids: tuple[int, ...]
    other: OtherIds


def require_ids(ids: AskedIds) -> None:
    """Refuse lists of ids that are none."""
    if not isinstance(ids, str):
        fits = len(ids) >= 2 and len(set(ids)) == len(ids) and all(0 <= number <= 255 for number in ids)
        require(fits, f"ids {' '.join(map(str, ids))}", "list two or more different ones from 0 to 255, or use auto")


def choose_ids(counts: Int64[np.ndarray, "256"], void: int) -> Chosen:
    """Choose classes by how often each value occurs in the masks.

    A range from 0 or 1 on is taken whole, with `void` beside it. Of other values, such as 0 and 255, those are classes
    that are frequent; the rest, smooth edges, goes to the nearest of two classes, and is void between more.

    Args:
        counts: pixels of each value.
        void: the id of pixels without a class.

    Raises:
        DataError: all pixels have the same value.
    """
    found = np.flatnonzero(counts)
    ids = found[found != void]
    if len(ids) >= 2 and ids[0] <= 1 and ids[-1] - ids[0] == len(ids) - 1:
        return Chosen(tuple(ids.tolist()), "refuse")
    if len(found) < 2:
        raise DataError("no classes in the masks", cause=f"all of their pixels are {', '.join(map(str, found))}")
    frequent = found[counts[found] >= _MIN_SHARE * np.sort(counts)[-2]]
    others: OtherIds = "refuse" if len(frequent) == len(found) else ("nearest" if len(frequent) == 2 else "void")
    return Chosen(tuple(frequent.tolist()), others)


def describe_ids(counts: Int64[np.ndarray, "256"], chosen: Chosen) -> str:
    """The values found with their shares, and what they are taken for, in a line."""
    share = counts / counts.sum()
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    listed = ", ".join(f"{number} {share[number]:.2%}" for number in sorted(order[:_MAX_LISTED].tolist()))
    more = f" and {len(order) - _MAX_LISTED} rarer ones" if len(order) > _MAX_LISTED else ""
    classes = " ".join(map(str, chosen.ids))
    rest = {"refuse": "", "nearest": "; others count as the nearest", "void": "; others are void"}[chosen.other]
    return f"values in the masks: {listed}{more}; classes are {classes}{rest} (another choice: --task.ids)"


def nearest(ids: tuple[int, ...]) -> NDArray[np.int64]:
    """For each value 0 to 255 the index of the id that is nearest."""
    distance = np.abs(np.arange(256)[:, None] - np.array(ids))
    return np.argmin(distance, axis=1)


def voc_colours() -> UInt8[np.ndarray, "256 3"]:
    """The palette of Pascal VOC, which label tools use too: the colour of each id."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.int64)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> (3 * place + channel)) & 1) << (7 - place)
    return colours.astype(np.uint8)


def colours_of(palette: bytes, used: NDArray[np.uint8]) -> dict[int, tuple[int, ...]]:
    """The colour of each index that is used."""
    return {index: tuple(palette[3 * index : 3 * index + 3]) for index in used.tolist()}


def is_voc(palette: bytes, used: NDArray[np.uint8]) -> bool:
    """Whether the used colours of a palette are those of Pascal VOC, so that an index is an id."""
    ours = voc_colours()
    return all(colour == tuple(ours[index].tolist()) for index, colour in colours_of(palette, used).items())


def mask_turn(turn: int, mask: tuple[int, int], shown: tuple[int, int], asked: MaskTurn, path: Path) -> int:
    """How a mask has to be turned to lie on its image as shown.

    Args:
        turn: the EXIF orientation of the image, 1 to 8.
        mask: height and width of the mask.
        shown: height and width of the image, turned.
        asked: how masks lie.
        path: the mask, for the message.

    Raises:
        DataError: neither its size nor `asked` says whether it is turned already.
    """
    if turn == 1 or asked == "upright":
        return 1
    if asked == "stored":
        return turn
    if turn in _TURNED and shown[0] != shown[1]:
        return turn if mask == shown[::-1] else 1
    cause = f"the EXIF tag of its image turns that ({turn}), and sizes say not whether the mask is turned already"
    fix = "say how masks lie: --task.mask-turn stored (as the pixels in the file) or upright (as shown)"
    raise DataError(f"{path} may lie the wrong way on its image", cause=cause, fix=fix)
