"""Labels as texts to class numbers and names; one rule for every kind of DATA, at no cost by the value of a number.

- Labels are class numbers if all are plain decimal integers (ASCII digits, no leading zero) and at least every second
  one up to the largest occurs. Any others are names: product ids, dates, `01`.
- An empty label, and -1, is no label (-1 beside 1 alone is a class).
- Several labels of an image are one name with `|` between them (`cat|dog`); `?cat` is a label that is not known.
"""

import re
from array import array
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

MAX_CLASSES = 100_000
NONE = -1
"""The class number of an image without a label."""

SEPARATOR, UNKNOWN = "|", "?"
LABEL_SEPARATOR = (
    "between several labels: space, comma, semicolon, pipe, the text itself, or none; auto: where it is safe"
)
"""What is said of the setting, for every verb."""

_WORDS = {"space": " ", "comma": ",", "semicolon": ";", "pipe": SEPARATOR}
_INTEGER = re.compile(r"0|[1-9][0-9]*")
_DIGITS = re.compile(r"[0-9]+")


class Classes(NamedTuple):
    """The class number of each image, int32, shape (n,), -1 for none; the class names; what should be said of them."""

    numbers: NDArray[np.int32]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Labels:
    """Collects one label per image."""

    def __init__(self) -> None:
        self.ids, self.table = array("i"), dict[str, int]()

    def add(self, text: str) -> None:
        """Append a label; a `ValueError` if there are more than `MAX_CLASSES` different ones."""
        if text not in self.table and len(self.table) == MAX_CLASSES:
            raise ValueError(f"more than {MAX_CLASSES} different labels; is this a column of labels?")
        self.ids.append(self.table.setdefault(text, len(self.table)))

    def add_none(self) -> None:
        self.ids.append(NONE)

    def build(self, separator: str = "auto") -> Classes:
        return resolve(np.array(self.ids, np.int32), tuple(self.table), separator)


def resolve(ids: NDArray[np.int32], names: tuple[str, ...], separator: str = "auto") -> Classes:
    """Number the classes: class numbers keep their values, names are numbered in sorted order.

    Args:
        ids: for each image an index into `names`, or -1 for none; int32, shape (n,).
        names: the different labels.
        separator: what is between several labels of an image: `auto` (guessed), `none`, `space`, `comma`, `semicolon`,
            `pipe`, or the text itself.
    """
    signs = set(names) == {"-1", "1"}
    texts, notes = _separated(names, separator)
    known = sorted({text for text in texts if text and (text != "-1" or signs)})
    if all(map(_INTEGER.fullmatch, known)):
        known.sort(key=_by_value)
        if known and are_class_numbers(known):
            known = [str(number) for number in range(int(known[-1]) + 1)]
    place = {text: number for number, text in enumerate(known)}
    table = np.array([*(place.get(text, NONE) for text in texts), NONE], np.int32)  # -1, no label, selects the last
    numbers = table[ids]
    return Classes(numbers, tuple(known), (*notes, *missing_note(numbers)) if known else ())


def are_class_numbers(texts: Collection[str]) -> bool:
    """Whether labels are class numbers: plain decimal integers, of which at least every second one occurs."""
    if not texts or not all(map(_INTEGER.fullmatch, texts)):
        return False
    largest = max(texts, key=_by_value)
    return len(largest) <= len(str(MAX_CLASSES)) and int(largest) < 2 * len(texts)


def _by_value(text: str) -> tuple[int, str]:
    """A key that sorts plain decimal integers by value."""
    return len(text), text


def missing_note(numbers: NDArray[np.int32]) -> tuple[str, ...]:
    """A note on images without a label, if there are any."""
    missing = int((numbers == NONE).sum())
    note = f"{missing} of {len(numbers)} images have no label, and are left out where labels are used"
    return (note,) if missing else ()


def _separated(names: tuple[str, ...], separator: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labels with `|` between several, and a note where their separator was guessed."""
    found = _guess(names) if separator == "auto" else "" if separator == "none" else _WORDS.get(separator, separator)
    if found in ("", SEPARATOR):
        return names, ()
    texts = tuple(SEPARATOR.join(sorted(set(_parts(name, found)))) or (name and SEPARATOR) for name in names)
    example = next((name for name in names if found in name), "")
    if separator != "auto":
        return texts, ()
    word = next(word for word, text in _WORDS.items() if text == found)
    what = f"labels such as '{example[:60]}' are several labels, separated by {word}"
    return texts, (f"{what}; --data.label-separator none takes each as one name",)


def _guess(names: tuple[str, ...]) -> str:
    """What separates several labels, where that is safe: each part is also a label alone, or all are numbers."""
    for separator in (";", ",", " "):
        alone = {name for name in names if separator not in name}
        parts = {part for name in names for part in _parts(name, separator)}
        numbers = separator != "," and all(map(_DIGITS.fullmatch, parts))  # 1,234 is one number
        if len(alone) < len(names) and (parts <= alone or numbers):
            return separator
    return ""


def label_names(classes: Iterable[str]) -> tuple[str, ...]:
    """Every label that occurs in the names of the classes, sorted."""
    return tuple(sorted({part.removeprefix(UNKNOWN) for text in classes for part in _parts(text, SEPARATOR)}))


def shown_labels(classes: tuple[str, ...], names: tuple[str, ...]) -> Float[Tensor, "classes names"]:
    """For each class and label name, 1 where the class has the label, 0 where not, NaN where that is not known."""
    place = {name: number for number, name in enumerate(names)}
    table = torch.zeros(len(classes), len(names))
    for row, text in enumerate(classes):
        for part in _parts(text, SEPARATOR):
            table[row, place[part.removeprefix(UNKNOWN)]] = float("nan") if part.startswith(UNKNOWN) else 1
    return table


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]
