"""Connected components of masks: between single patches and one large block."""

import numpy as np
from jaxtyping import Bool, Int

from smalti.core.contracts import Grid


def component_sizes(masks: Bool[np.ndarray, "B N"], grid: Grid) -> Int[np.ndarray, "components"]:
    """The number of patches in every connected component of every mask, where patches are neighbours along an edge.

    Each masked patch starts with a number of its own; the highest number spreads through its component.
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
