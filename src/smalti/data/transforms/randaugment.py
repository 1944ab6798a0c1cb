"""RandAugment: a few operations on each image, drawn from a list, all about equally strong."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smalti.core.config import require, setting
from smalti.core.contracts import Batch
from smalti.core.rng import Keys, Stream, fold, uniform
from smalti.data.transforms import image_operations as operations
from smalti.data.transforms.batch_transforms import keys_of
from smalti.models.vit import as_unit_range

Level = NDArray[np.float64]


class Operation(NamedTuple):
    """What is done, and how much of it at a level from 0 to 1 and for a sign of -1 or 1."""

    change: Callable[[Tensor, Tensor], Tensor]
    amount: Callable[[Level, Level], Level]


def _enhance(level: Level, sign: Level) -> Level:
    return np.maximum(0.1, 1 + 0.9 * level * sign)


def _none(level: Level, sign: Level) -> Level:
    return level


OPERATIONS = (
    Operation(operations.autocontrast, _none),
    Operation(operations.equalize, _none),
    Operation(operations.invert, _none),
    Operation(operations.rotate, lambda level, sign: 30 * level * sign),
    Operation(operations.posterize, lambda level, sign: 4 - np.floor(4 * level)),
    Operation(operations.solarize, lambda level, sign: 256 - np.floor(256 * level)),
    Operation(operations.solarize_add, lambda level, sign: np.floor(110 * level)),
    Operation(operations.color, _enhance),
    Operation(operations.contrast, _enhance),
    Operation(operations.brightness, _enhance),
    Operation(operations.sharpness, _enhance),
    Operation(operations.shear_x, lambda level, sign: 0.3 * level * sign),
    Operation(operations.shear_y, lambda level, sign: 0.3 * level * sign),
    Operation(operations.translate_x, lambda level, sign: 0.45 * level * sign),
    Operation(operations.translate_y, lambda level, sign: 0.45 * level * sign),
)


@dataclass(frozen=True)
class RandAugment:
    """So many operations in turn on each image, each of the fifteen equally likely.

    Reference: Cubuk et al. 2020; timm, data/auto_augment.py, `rand-m9-mstd0.5-inc1` (list, ranges, probability), which
    the released code fine-tunes with.
    Differs: geometry reads pixels bilinearly (timm here: bicubic) and rounds; operations are drawn for each image from
    its key.
    """

    operations: int = setting(0, "for each image; 0: none", "released code: 2")
    magnitude: float = setting(9.0, "strength, 0 to 10", "released code")
    spread: float = setting(0.5, "standard deviation of the strength", "released code")
    probability: float = setting(0.5, "that an operation that was drawn is applied", "timm")

    def __post_init__(self) -> None:
        require(self.operations >= 0, f"{self.operations} operations", "use 0 or more")
        require(0 <= self.magnitude <= 10, f"a magnitude of {self.magnitude}", "use 0 to 10")
        require(self.spread >= 0, f"a spread of magnitudes of {self.spread}", "use 0 or more")
        require(0 <= self.probability <= 1, f"a probability of operations of {self.probability}", "use 0 to 1")

    def __call__(self, batch: Batch) -> Batch:
        """The batch with changed images, float in [0, 1]."""
        if self.operations == 0:
            return batch
        levels = as_unit_range(batch.image).mul(255).round()
        for turn in range(self.operations):
            kind, level, sign = self.drawn(keys_of(batch), turn)
            for number, operation in enumerate(OPERATIONS):
                chosen = np.flatnonzero(kind == number)
                if len(chosen):
                    amount = torch.from_numpy(operation.amount(level[chosen], sign[chosen])).to(levels)
                    rows = torch.from_numpy(chosen).to(levels.device)
                    levels[rows] = operation.change(levels[rows], amount)
        return replace(batch, image=levels / 255)

    def drawn(self, keys: Keys, turn: int) -> tuple[NDArray[np.int64], Level, Level]:
        """For each key which operation, -1 for none; its level in [0, 1]; and a sign."""
        kind, applied, sign, radius, angle = uniform(fold(keys, Stream.AUGMENT, turn), 5).T
        normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)
        level = np.clip(self.magnitude + self.spread * normal, 0, 10) / 10
        chosen = np.floor(kind * len(OPERATIONS)).astype(np.int64)
        return np.where(applied < self.probability, chosen, -1), level, np.where(sign < 0.5, -1.0, 1.0)
