"""Labels as they are written down, to class numbers."""

import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

MAX_CLASSES = 100_000
NONE = -1


class Labels:
    """Collects one label an image. Whole numbers are class numbers; anything else is a class name."""

    def __init__(self) -> None:
        self.ids, self.table = array("i"), dict[str, int]()

    def add(self, text: str) -> None:
        """Append a label.

        Raises:
            ValueError: a number out of range, or more classes than can be; the message says which.
        """
        if re.fullmatch(r"-?[0-9]+", text) and not (len(text) < 10 and 0 <= int(text) < MAX_CLASSES):
            raise ValueError(f"label {text[:20]} is out of range; class numbers are 0 to {MAX_CLASSES - 1}")
        if text not in self.table and len(self.table) == MAX_CLASSES:
            raise ValueError(f"more than {MAX_CLASSES} different labels; is this a column of labels?")
        self.ids.append(self.table.setdefault(text, len(self.table)))

    def add_none(self) -> None:
        """Append an image without a label."""
        self.ids.append(NONE)

    def build(self) -> tuple[NDArray[np.int32], tuple[str, ...]]:
        """A class number for each image, and the classes in order; no classes where any image has no label."""
        ids = np.array(self.ids, np.int32)
        return resolve(ids, tuple(self.table))


def resolve(ids: NDArray[np.int32], names: tuple[str, ...]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Number the classes: a number stands for itself, names are sorted."""
    if not names or bool((ids == NONE).any()):
        return np.full(len(ids), NONE, np.int32), ()
    if all(name.isdecimal() for name in names):
        numbers = np.array([int(name) for name in names], np.int32)
        return numbers[ids], tuple(str(number) for number in range(int(numbers.max()) + 1))
    classes = tuple(sorted(names))
    place = {name: number for number, name in enumerate(classes)}
    return np.array([place[name] for name in names], np.int32)[ids], classes


def twins(classes: Iterable[str]) -> list[tuple[str, ...]]:
    """Class names that differ in nothing but case or Unicode normal form: likely one class, spelled twice."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())].append(name)
    return [tuple(group) for group in alike.values() if len(group) > 1]
