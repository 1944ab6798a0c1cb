"""A learned codebook as part of a tokenizer: unit codes, updated by moving averages (EMA) of their points."""

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.config import require
from smalti.functional.codebook import Codebook, ema_update, nearest, new_codebook, replace_dead_codes
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.tokenizers.trunk import float32


class CodebookConfig(Protocol):
    """The configuration of a codebook that is updated by EMA."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def code_dim(self) -> int: ...
    @property
    def commitment(self) -> float: ...
    @property
    def decay(self) -> float: ...
    @property
    def dead_after(self) -> int: ...


def require_codebook(config: CodebookConfig) -> None:
    """Check the settings of a codebook.

    Raises:
        UsageError: one of them is invalid; the message names it.
    """
    require(config.code_dim >= 2, f"codes of {config.code_dim} dimensions", "use at least 2")
    require(config.commitment >= 0, f"a commitment of {config.commitment}", "use 0 or more")
    require(0 <= config.decay < 1, f"a decay of {config.decay}", "use one in [0, 1)")
    require(config.dead_after >= 1, f"codes dead after {config.dead_after} steps", "use at least 1")


class EMACodebookTokenizer(ImageTokenizer):
    """A tokenizer with unit codes in its buffers, each updated by moving averages (EMA) of the points assigned to it.

    Points are unit vectors, too. Dead codes are replaced by points.

    Reference: van den Oord et al. 2017 (VQ-VAE, EMA codebook); Yu et al. 2022 (ViT-VQGAN: few dimensions, unit length).
    """

    codes: Tensor
    sizes: Tensor
    sums: Tensor
    unused: Tensor
    decay: float
    dead_after: int
    commitment: float

    def add_codebook(self, config: CodebookConfig) -> None:
        """Add the codebook, with random codes."""
        self.decay, self.dead_after, self.commitment = config.decay, config.dead_after, config.commitment
        codebook = new_codebook(torch.nn.init.orthogonal_(torch.empty(config.vocab_size, config.code_dim)))
        for name, value in codebook._asdict().items():
            self.register_buffer(name, value)

    @property
    def codebook(self) -> Codebook:
        """The codebook in the buffers."""
        return Codebook(self.codes, self.sizes, self.sums, self.unused)

    def set_codebook(self, codebook: Codebook) -> None:
        """Copy a codebook into the buffers."""
        for own, new in zip(self.codebook, codebook, strict=True):
            own.copy_(new)

    def nearest(self, points: Float[Tensor, "*B d"]) -> Int[Tensor, "*B"]:
        """The code with the greatest cosine similarity, in [0, V)."""
        with float32(points):
            return nearest(points, self.codes)

    def values(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B d"]:
        """The codes with these indices."""
        return F.embedding(ids, self.codes)

    @torch.no_grad()
    def update_codebook(self, points: Float[Tensor, "n d"], ids: Int[Tensor, "n"], step: int) -> None:
        """Update the codes by EMA, and move those without points for `dead_after` steps to some of these points.

        Args:
            points: those of the step, of all ranks.
            ids: the code assigned to each.
            step: number of optimiser steps done.
        """
        moved = ema_update(self.codebook, points, ids, self.decay)
        self.set_codebook(replace_dead_codes(moved, points, step, self.dead_after))

    def meters(self) -> dict[str, Tensor]:
        """Share of the codes with a point in the last `dead_after` / 2 steps, and perplexity of their use (EMA)."""
        alive = (self.unused < max(self.dead_after // 2, 1)).float().mean()
        shares = self.sizes / self.sizes.sum()  # in float32: a GPU of Apple's has no float64
        return {"alive": alive, "perplexity": torch.special.entr(shares).sum().exp()}
