"""A data set in parts, for training, validation and test: by class, with groups and copies in one part."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from smalti.core.rng import Stream, fold


class Groups:
    """Which of n things belong together: the number of a group is that of its first member (union-find)."""

    def __init__(self, length: int) -> None:
        self._leader = list(range(length))

    def of(self, one: int) -> int:
        """The number of the group that one is in."""
        while self._leader[one] != one:
            self._leader[one] = one = self._leader[self._leader[one]]
        return one

    def join(self, one: int, other: int) -> None:
        """Make one group of those that two are in."""
        first, second = sorted((self.of(one), self.of(other)))
        self._leader[second] = first


def joined_groups(*keys: Sequence[object]) -> NDArray[np.int64]:
    """For each image the number of its group: images with an equal key, of any of the sequences, are in one group.

    Args:
        keys: sequences of one key for each image; None is equal to nothing.
    """
    groups = Groups(len(keys[0]))
    for sequence in keys:
        first: dict[object, int] = {}
        for place, key in enumerate(sequence):
            if key is not None:
                groups.join(place, first.setdefault(key, place))
    return np.array([groups.of(place) for place in range(len(keys[0]))], np.int64)


def partition(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    lots: NDArray[np.uint64],
    shares: Mapping[str, float],
    seed: int,
) -> NDArray[np.int64]:
    """For each image the part it is in, such that the parts have nearly the wanted share of every class.

    Groups are drawn in random order, the large ones first. Each comes to the part that lacks most of its classes.

    Args:
        labels: the class of each image, -1 for none, shape (n,).
        groups: the number of each image's group; a group is in one part.
        lots: a number for each image, as of its content, that together with `seed` decides about the order.
        shares: the wanted share of each part; they add up to 1.

    Returns:
        For each image an index into `shares`.
    """
    _, first, which, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((fold(seed, lots[first], Stream.SPLIT), -sizes))
    members = np.split(np.argsort(which, kind="stable"), np.cumsum(sizes)[:-1])
    classes, numbers = np.unique(labels, return_inverse=True)
    lacking = np.array(list(shares.values()))[:, None] * np.bincount(numbers, minlength=len(classes))
    part = np.empty(len(labels), np.int64)
    for group in order:
        counts = np.bincount(numbers[members[group]], minlength=len(classes))
        best = int(np.argmax(lacking @ counts))
        lacking[best] -= counts
        part[members[group]] = best
    return part
