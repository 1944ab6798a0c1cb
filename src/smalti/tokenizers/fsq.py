"""A tokenizer with finite scalar quantisation: a few numbers a position, each rounded to a few levels.

There is no codebook that could collapse, nothing to tune beside the levels, and no state.

Reference: Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2023.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.config import require, setting
from smalti.functional.scalar_quantization import bounded, ids_of, rounded, values_of
from smalti.tokenizers.quantised import Quantised
from smalti.tokenizers.trunk import drawn, require_trunk


@dataclass(frozen=True)
class FSQ:
    """Configuration of the tokenizer; `build()` makes it."""

    levels: tuple[int, ...] = setting((8, 5, 5, 5), "levels of each number; V is their product", "FSQ §4.1, table 1")
    stride: int = setting(8, "pixels between tokens")
    in_chans: int = setting(3, "channels")
    width: int = setting(64, "channels")
    depth: int = setting(2, "residual blocks in the encoder and in the decoder")

    def __post_init__(self) -> None:
        enough = len(self.levels) >= 1 and min(self.levels) >= 3
        require(enough, f"levels {self.levels}", "use 3 or more for each number, such as 8 5 5 5")
        require_trunk(self)

    @property
    def vocab_size(self) -> int:
        """The product of the levels."""
        return math.prod(self.levels)

    def build(self, seed: int = 0) -> "FiniteScalarQuantised":
        """A network with freshly drawn weights, the same for the same seed."""
        return drawn(lambda: FiniteScalarQuantised(self), seed)


class FiniteScalarQuantised(Quantised):
    """Points and values lie in the cube [-1, 1]^d."""

    config: FSQ
    commitment = 0.0

    def __init__(self, config: FSQ) -> None:
        super().__init__(config, len(config.levels))

    @torch.no_grad()
    def initialise_from(self, images: Tensor, order: Int[Tensor, "n"]) -> None:
        """Start with the principal components of patches, each at the scale of its levels. `order` is not used."""
        sample = self.sample(images)
        shown = min(self.code_dim, self.width)
        weight = torch.zeros(self.code_dim, self.width)
        weight[:shown, :shown] = sample.points[:, :shown].std(0, correction=0).clamp_min(1e-3).reciprocal().diag()
        self.start_as_projection(sample, weight, torch.zeros(self.code_dim))

    def placed(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        """Inside the cube."""
        return bounded(x, self.config.levels)

    def nearest(self, points: Float[Tensor, "*B d"]) -> Int[Tensor, "*B"]:
        """Every number rounded."""
        return ids_of(rounded(points, self.config.levels), self.config.levels)

    def values(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B d"]:
        """The levels that a number stands for."""
        return values_of(ids, self.config.levels)
