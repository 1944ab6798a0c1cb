"""Splits: images held out, few labels, and a data set in parts by class; groups and copies come to one part."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from smalti.core.rng import Stream, fold


def random_order(num_images: int, seed: int) -> NDArray[np.int64]:
    """A random permutation of all positions, the same for the same seed."""
    return np.argsort(fold(seed, np.arange(num_images), Stream.SPLIT), kind="stable")


def hold_out(
    num_images: int, share: float, seed: int, most: int | None = None, groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of training images, and of a share of the images, at most `most`, held out for validation or testing.

    Each of two or more images comes to a part, and no part is empty; the split is the same for the same seed.

    Args:
        most: held-out images; there may be more where groups are not divided.
        groups: a number for each image; images with the same number come to the same part, if there are two numbers at
            least. None: each image is a group of its own.
    """
    order = random_order(num_images, seed)
    aside = min(max(1, round(share * num_images)), num_images - 1, num_images if most is None else most)
    if groups is not None and len(np.unique(groups)) > 1:
        order = np.argsort(fold(seed, groups, Stream.SPLIT), kind="stable")
        begins = np.flatnonzero(np.diff(groups[order])) + 1  # where another group begins
        aside = int(begins[min(int(np.searchsorted(begins, aside)), len(begins) - 1)])
    return np.sort(order[aside:]), np.sort(order[:aside])


def few_labels(
    labels: NDArray[np.integer], positions: NDArray[np.int64], share: float, per_class: int | None, seed: int
) -> NDArray[np.int64]:
    """A subset of the positions, even over the classes; with the same seed, a smaller subset is part of a larger one.

    Args:
        labels: the class of every image, including those not in `positions`.
        positions: positions to choose from.
        share: share of the images of each class, at least one; counted on `labels`, limited to those in `positions`.
        per_class: number of images of each class, instead of a share.
        seed: of the random choice.
    """
    order = positions[np.argsort(fold(seed, positions, Stream.LABELS), kind="stable")]
    chosen = []
    for label in np.unique(labels[positions]):
        wanted = max(1, round(share * int((labels == label).sum()))) if per_class is None else per_class
        chosen.append(order[labels[order] == label][:wanted])
    return np.sort(np.concatenate(chosen))


class UnionFind:
    """Which of n things belong together: the number of a group is that of its first member."""

    def __init__(self, length: int) -> None:
        self._leader = list(range(length))

    def find(self, one: int) -> int:
        """The number of the group that one is in."""
        while self._leader[one] != one:
            self._leader[one] = one = self._leader[self._leader[one]]
        return one

    def union(self, one: int, other: int) -> None:
        """Make one group of those that two are in."""
        first, second = sorted((self.find(one), self.find(other)))
        self._leader[second] = first


def joined_groups(*keys: Sequence[object]) -> NDArray[np.int64]:
    """For each image the number of its group: images with an equal key, of any of the sequences, are in one group.

    Args:
        keys: sequences of one key for each image; None is equal to nothing.
    """
    groups = UnionFind(len(keys[0]))
    for sequence in keys:
        first: dict[object, int] = {}
        for place, key in enumerate(sequence):
            if key is not None:
                groups.union(place, first.setdefault(key, place))
    return np.array([groups.find(place) for place in range(len(keys[0]))], np.int64)


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
