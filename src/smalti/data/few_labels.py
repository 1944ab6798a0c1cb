"""Which of the labelled images a run learns from, where it is to do with few labels, and which it makes choices on."""

import numpy as np
from numpy.typing import NDArray

from smalti.core.rng import Stream, fold


def by_lot(num_images: int, seed: int) -> NDArray[np.int64]:
    """All positions in an order that is drawn, the same one for the same seed."""
    return np.argsort(fold(seed, np.arange(num_images), Stream.SPLIT), kind="stable")


def put_aside(num_images: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions to learn from, and a share of them to choose on: at least one each; the same for the same seed."""
    order = by_lot(num_images, seed)
    aside = min(max(1, round(share * num_images)), num_images - 1)
    return np.sort(order[aside:]), np.sort(order[:aside])


def few_labels(
    labels: NDArray[np.integer], positions: NDArray[np.int64], share: float, per_class: int | None, seed: int
) -> NDArray[np.int64]:
    """Some of the positions, evenly over the classes: fewer labels are a part of more, for the same seed.

    Args:
        labels: the class of every image, also of those that `positions` leaves out.
        share: of the images of each class, at least one; counted on `labels`, and at most what `positions` has.
        per_class: so many of each class instead.
    """
    order = positions[np.argsort(fold(seed, positions, Stream.LABELS), kind="stable")]
    chosen = []
    for label in np.unique(labels[positions]):
        wanted = max(1, round(share * int((labels == label).sum()))) if per_class is None else per_class
        chosen.append(order[labels[order] == label][:wanted])
    return np.sort(np.concatenate(chosen))
