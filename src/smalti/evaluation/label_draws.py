"""Evaluation with few labels: the number of labelled images, and random draws of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from smalti.core.rng import fold_one
from smalti.data.splits import few_labels


@dataclass(frozen=True)
class Budget:
    """The number of labelled images per class, as a number or as a share of the class."""

    name: str
    each: int = 0
    share: float = 0.0

    def draw(self, labels: Int[Tensor, "n"], among: Int[Tensor, "m"], seed: int, number: int) -> Int[Tensor, "l"]:
        """Positions of the labelled images of one draw.

        Draws with different `number` are independent. With the same one, a larger budget contains a smaller one.

        Args:
            labels: of all training images, of which a share is taken.
            among: positions that may be drawn.
            seed: of all draws.
            number: of the draw, from 0.
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
