"""Splits of labelled images: held out, or a training subset with few labels."""

import numpy as np
from numpy.typing import NDArray

from smalti.core.rng import Stream, fold


def by_lot(num_images: int, seed: int) -> NDArray[np.int64]:
    """A random permutation of all positions, the same for the same seed."""
    return np.argsort(fold(seed, np.arange(num_images), Stream.SPLIT), kind="stable")


def put_aside(
    num_images: int, share: float, seed: int, most: int | None = None, groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of training images, and of a share of the images, at most `most`, held out for validation or testing.

    Each of two or more images comes to a part, and no part is empty; the split is the same for the same seed.

    Args:
        most: held-out images; there may be more where groups are not divided.
        groups: a number for each image; images with the same number come to the same part, if there are two numbers at
            least. None: each image is a group of its own.
    """
    order = by_lot(num_images, seed)
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
