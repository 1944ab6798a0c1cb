"""Few labels: how many, and which images have them in each draw."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from smalti.core.rng import Stream, fold


@dataclass(frozen=True)
class Budget:
    """How many images of a class have labels: a number, or a share of those that there are."""

    name: str
    each: int = 0
    share: float = 0.0

    def of(self, size: int) -> int:
        """Labels in a class of so many images; at least one."""
        return self.each or max(1, round(self.share * size))

    def draw(self, labels: Int[Tensor, "n"], among: Int[Tensor, "m"], seed: int, number: int) -> Int[Tensor, "l"]:
        """Positions of the images with labels, of every class its share.

        Draws of different numbers are independent. Of one number, what a smaller budget has is in a larger one.

        Args:
            labels: of all training images, which a share is of.
            among: positions that may be drawn.
            number: which draw, from 0.
        """
        order = among[torch.from_numpy(np.argsort(fold(seed, number, among.numpy(), Stream.SPLIT), kind="stable"))]
        classes, sizes = labels[among].unique(), torch.bincount(labels)
        return torch.cat([order[labels[order] == c][: self.of(int(sizes[c]))] for c in classes])


BUDGETS = (
    Budget("1 a class", each=1),
    Budget("5 a class", each=5),
    Budget("10 a class", each=10),
    Budget("1 %", share=0.01),
    Budget("10 %", share=0.1),
)
