"""Connected pieces of masks: how far from single patches, or from one large hole, a masking is."""

import numpy as np
from jaxtyping import Bool, Int

from smalti.core.contracts import Grid


def piece_sizes(masks: Bool[np.ndarray, "B N"], grid: Grid) -> Int[np.ndarray, "pieces"]:
    """Patches of every connected piece of every mask; patches are connected along their edges.

    Each masked patch starts with a number of its own; the highest spreads until all of a piece have it.
    """
    cells = masks.reshape(-1, *grid)
    number = np.arange(1, cells.size + 1).reshape(cells.shape) * cells
    while True:
        spread = number.copy()
        np.maximum(spread[:, 1:], number[:, :-1], out=spread[:, 1:])
        np.maximum(spread[:, :-1], number[:, 1:], out=spread[:, :-1])
        np.maximum(spread[:, :, 1:], number[:, :, :-1], out=spread[:, :, 1:])
        np.maximum(spread[:, :, :-1], number[:, :, 1:], out=spread[:, :, :-1])
        spread *= cells
        if np.array_equal(spread, number):
            return np.unique(number[cells], return_counts=True)[1]
        number = spread
