"""Which columns of a table hold labels where none has a usual name: the only other one, or several of 0 and 1."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeAlias

from smalti.data.datasets.labels import MAX_CLASSES, SEPARATOR, UNKNOWN, are_class_numbers

LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "class_name", "target", "category", "coarse_label")
LabelColumn: TypeAlias = Callable[[list[str]], str]
"""The label in the cells of a row; empty for none."""

_YES, _NO = frozenset({"1", "1.0", "true"}), frozenset({"0", "0.0", "false"})
_OPEN = frozenset({"", "-1", "-1.0", "nan"})
_NEITHER = frozenset({"split", "fold", "train", "valid", "val", "test", "is_train", "is_valid", "is_val", "is_test"})
_SHOWN = 8


@dataclass(frozen=True)
class OneHot:
    """Several columns, each with 1 where the image has its label and 0 where not.

    Blank and -1 are not known; in a column without any 0 they are no.

    Attributes:
        columns: place and name of each.
        decided: places of the columns that have no 0.
    """

    columns: tuple[tuple[int, str], ...]
    decided: frozenset[int]

    def __call__(self, row: list[str]) -> str:
        parts = []
        for place, name in self.columns:
            cell = row[place].strip().lower()
            if cell in _YES:
                parts.append(name)
            elif cell in _OPEN and place not in self.decided:
                parts.append(UNKNOWN + name)
        unknown = len(parts) == len(self.columns) and all(part.startswith(UNKNOWN) for part in parts)
        return "" if unknown else SEPARATOR.join(parts) or SEPARATOR


def guess_labels(rows: Iterable[tuple[int, list[str]]], header: list[str], path: int) -> tuple[LabelColumn | None, str]:
    """The labels of a table without a column of a usual name, or None; and a line that says so.

    Args:
        rows: number and cells of each line.
        header: the names of the columns.
        path: the place of the column of paths.
    """
    others = [place for place in range(len(header)) if place != path]
    found: dict[int, set[str]] = {place: set() for place in others}
    count, most = 0, MAX_CLASSES if len(others) == 1 else len(_YES | _NO | _OPEN)
    for _, row in rows:
        count += 1
        for place in others:
            if len(found[place]) <= most:
                found[place].add(row[place].strip())
    alike = {place: {text.lower() for text in found[place]} for place in others}
    hot = [p for p in others if alike[p] <= _YES | _NO | _OPEN and alike[p] & (_YES | _NO)]
    hot = [place for place in hot if header[place].lower() not in _NEITHER]
    if len(hot) > 1 and any(alike[place] & _YES for place in hot):
        columns = tuple((place, header[place].replace(SEPARATOR, "/")) for place in hot)
        shown = ", ".join(name for _, name in columns[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")
        note = f"{len(columns)} columns of 0 and 1 are labels: {shown}; blank and -1 are not known"
        return OneHot(columns, frozenset(place for place in hot if not alike[place] & _NO)), note
    if len(others) == 1 and _are_labels(found[others[0]] - {"", "-1"}, count, header[others[0]]):
        return itemgetter(others[0]), f"labels are taken from column '{header[others[0]]}'"
    return None, ""


def _are_labels(texts: set[str], rows: int, name: str) -> bool:
    """Whether the values of the only other column are labels: they repeat, and are names or class numbers."""
    numbers = all(text.replace(".", "", 1).lstrip("-").isdecimal() for text in texts)
    repeated = 2 <= len(texts) <= min((rows + 1) // 2, MAX_CLASSES) and name.lower() not in _NEITHER
    return repeated and (not numbers or are_class_numbers(texts))
