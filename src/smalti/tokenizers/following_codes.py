"""A learned codebook as part of a tokenizer: unit codes that follow the points assigned to them."""

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.config import require
from smalti.functional.codebook import Codebook, followed, nearest, revived, started
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.tokenizers.trunk import float32


class CodesConfig(Protocol):
    """A configuration with a codebook that follows its points."""

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


def require_codes(config: CodesConfig) -> None:
    """Check the settings of a codebook.

    Raises:
        UsageError: one of them is invalid; the message names it.
    """
    require(config.code_dim >= 2, f"codes of {config.code_dim} dimensions", "use at least 2")
    require(config.commitment >= 0, f"a commitment of {config.commitment}", "use 0 or more")
    require(0 <= config.decay < 1, f"a decay of {config.decay}", "use one in [0, 1)")
    require(config.dead_after >= 1, f"codes dead after {config.dead_after} steps", "use at least 1")


class FollowingCodes(ImageTokenizer):
    """Unit codes in the buffers of a tokenizer, which follow the points assigned to them by moving averages (EMA).

    Points are unit vectors, too. Dead codes are moved to points.

    Reference: van den Oord et al. 2017 (VQ-VAE, EMA codebook); Yu et al. 2022 (ViT-VQGAN: few dimensions, unit length).
    """

    codes: Tensor
    sizes: Tensor
    sums: Tensor
    unused: Tensor
    decay: float
    dead_after: int
    commitment: float

    def add_codes(self, config: CodesConfig) -> None:
        """Add the codebook, with random codes."""
        self.decay, self.dead_after, self.commitment = config.decay, config.dead_after, config.commitment
        book = started(torch.nn.init.orthogonal_(torch.empty(config.vocab_size, config.code_dim)))
        for name, value in book._asdict().items():
            self.register_buffer(name, value)

    @property
    def book(self) -> Codebook:
        """The codebook in the buffers."""
        return Codebook(self.codes, self.sizes, self.sums, self.unused)

    def set_book(self, book: Codebook) -> None:
        """Copy a codebook into the buffers."""
        for own, new in zip(self.book, book, strict=True):
            own.copy_(new)

    def nearest(self, points: Float[Tensor, "*B d"]) -> Int[Tensor, "*B"]:
        """The code with the greatest cosine similarity, in [0, V)."""
        with float32(points):
            return nearest(points, self.codes)

    def values(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B d"]:
        """The codes with these indices."""
        return F.embedding(ids, self.codes)

    @torch.no_grad()
    def follow(self, points: Float[Tensor, "n d"], ids: Int[Tensor, "n"], step: int) -> None:
        """Update the codes by EMA, and move those without points for `dead_after` steps to some of these points.

        Args:
            points: those of the step, of all ranks.
            ids: the code assigned to each.
            step: number of optimiser steps done.
        """
        moved = followed(self.book, points, ids, self.decay)
        self.set_book(revived(moved, points, step, self.dead_after))

    def meters(self) -> dict[str, Tensor]:
        """Share of the codes with a point in the last `dead_after` / 2 steps, and perplexity of their use lately."""
        alive = (self.unused < max(self.dead_after // 2, 1)).float().mean()
        shares = self.sizes / self.sizes.sum()  # in float32: a GPU of Apple's has no float64
        return {"alive": alive, "perplexity": torch.special.entr(shares).sum().exp()}
