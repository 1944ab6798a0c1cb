"""Few labels: how many, and which images have them in each draw."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from smalti.core.rng import fold_one
from smalti.data.splits import few_labels


@dataclass(frozen=True)
class Budget:
    """How many images of a class have labels: a number, or a share of those that there are."""

    name: str
    each: int = 0
    share: float = 0.0

    def draw(self, labels: Int[Tensor, "n"], among: Int[Tensor, "m"], seed: int, number: int) -> Int[Tensor, "l"]:
        """Positions of the images with labels, of every class its share.

        Draws of different numbers are independent. Of one number, what a smaller budget has is in a larger one.

        Args:
            labels: of all training images, which a share is of.
            among: positions that may be drawn.
            number: which draw, from 0.
        """
        own = fold_one(seed, number)
        return torch.from_numpy(few_labels(labels.numpy(), among.numpy(), self.share, self.each or None, own))


BUDGETS = (
    Budget("1 a class", each=1),
    Budget("5 a class", each=5),
    Budget("10 a class", each=10),
    Budget("1 %", share=0.01),
    Budget("10 %", share=0.1),
)
