"""A tokenizer with finite scalar quantisation (FSQ): a few numbers per position, each rounded to a few levels.

It has no learned codebook that could collapse, no hyperparameters except the levels, and no state.

Reference: Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2023.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.config import require, setting
from smalti.functional.codebook import bounded, ids_of, rounded, values_of
from smalti.tokenizers.quantised import Quantised
from smalti.tokenizers.trunk import drawn, require_trunk


@dataclass(frozen=True)
class FSQ:
    """Configuration of the tokenizer."""

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
        """V, the product of the levels."""
        return math.prod(self.levels)

    def build(self, seed: int = 0) -> "FiniteScalarQuantised":
        """A network with random weights, which are a function of the seed."""
        return drawn(lambda: FiniteScalarQuantised(self), seed)


class FiniteScalarQuantised(Quantised):
    """Points and values lie in the cube [-1, 1]^d."""

    config: FSQ
    commitment = 0.0

    def __init__(self, config: FSQ) -> None:
        super().__init__(config, len(config.levels))

    @torch.no_grad()
    def initialise_from(self, images: Tensor, order: Int[Tensor, "n"]) -> None:
        """Initialise as a projection to principal components of patches, scaled to the levels; `order` is unused."""
        sample = self.sample(images)
        shown = min(self.code_dim, self.width)
        weight = torch.zeros(self.code_dim, self.width)
        weight[:shown, :shown] = sample.points[:, :shown].std(0, correction=0).clamp_min(1e-3).reciprocal().diag()
        self.start_as_projection(sample, weight, torch.zeros(self.code_dim))

    def placed(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        """Vectors mapped into the cube by `bounded`."""
        return bounded(x, self.config.levels)

    def nearest(self, points: Float[Tensor, "*B d"]) -> Int[Tensor, "*B"]:
        """The index of the rounded point, in [0, V)."""
        return ids_of(rounded(points, self.config.levels), self.config.levels)

    def values(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B d"]:
        """The values of each dimension for an index."""
        return values_of(ids, self.config.levels)
