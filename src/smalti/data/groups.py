"""Groups of images that stay on one side of a split, as of a patient or a place: by a column, or by paths."""

import re

import numpy as np
from numpy.typing import NDArray

from smalti.core.config import require
from smalti.core.errors import DataError
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.duplicates import copies
from smalti.data.splits import joined_groups

GROUP = (
    "images that stay on one side of a split: those with the same value in a column, or the same text in the"
    " parentheses of a regular expression for their paths, as '^([^/]+)/'"
)
"""What is said of the setting, for every verb."""


def require_group(group: str) -> None:
    """Refuse a regular expression that is none; what has no parentheses is the name of a column."""
    if "(" not in group:
        return
    try:
        parts = re.compile(group).groups
    except (re.error, RecursionError, OverflowError) as error:
        require(False, f"the group '{group}' is no regular expression: {error}", "use one such as '^([^/]+)/'")
    else:
        require(parts > 0, f"the group '{group}' has no parentheses that capture", "use one such as '^([^/]+)/'")


def group_values(source: ImageDataset, group: str) -> list[str | None]:
    """The group of each image, None for none: a cell of a column, or what is in the parentheses of an expression.

    Raises:
        DataError: there is no such column, or no path fits.
    """
    if "(" not in group:
        return source.column(group)
    found = [re.search(group, source.key(index)) for index in range(len(source))]
    if not any(found):
        cause = f"none of {len(found)} paths fits, first '{source.key(0)}'"
        raise DataError(f"no groups by '{group}'", cause=cause, fix="fit it to these paths")
    return [next((text for text in one.groups() if text is not None), None) if one else None for one in found]


def numbered(source: ImageDataset, group: str) -> NDArray[np.int64]:
    """A number for each image, (n,), the same in a group, alone without; a `DataError` if all are of one group."""
    numbers = joined_groups(group_values(source, group))
    if len(np.unique(numbers)) < 2:
        cause = f"all {len(numbers)} images are of one group, so none can be held out"
        raise DataError(f"no split by '{group}'", cause=cause, fix="choose another --data.group")
    return numbers


def together(images: ImageDataset) -> NDArray[np.int64]:
    """A number for each image, the same for those that must be on one side of a split: copies, and groups; (n,)."""
    same = copies(images)
    return same if images.groups is None else joined_groups(same.tolist(), images.groups.tolist())
