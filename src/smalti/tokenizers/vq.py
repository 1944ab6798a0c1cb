"""A tokenizer with vector quantisation: unit codes of few dimensions, updated by EMA of the encoder's points.

Codes are initialised by k-means, and dead codes are moved to points.

Reference: van den Oord et al. 2017 (VQ-VAE, EMA codebook); Yu et al. 2022 (ViT-VQGAN: few dimensions, unit length).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.config import require, setting
from smalti.functional.codebook import Codebook, followed, kmeans, nearest, revived, started
from smalti.functional.metrics import entropy
from smalti.tokenizers.quantised import Quantised
from smalti.tokenizers.trunk import drawn, float32, require_trunk


@dataclass(frozen=True)
class VQ:
    """Configuration of the tokenizer."""

    vocab_size: int = setting(512, "visual tokens")
    stride: int = setting(8, "pixels between tokens")
    in_chans: int = setting(3, "channels")
    width: int = setting(64, "channels")
    depth: int = setting(2, "residual blocks in the encoder and in the decoder")
    code_dim: int = setting(16, "dimensions of a code", "ViT-VQGAN §3.1 uses 32")
    commitment: float = setting(
        16.0,
        "weight of the squared distance of a point to its code",
        "VQ-VAE §3.2: 0.25, against an error in other units",
    )
    decay: float = setting(0.99, "a step, of the codes", "VQ-VAE, appendix A.1")
    dead_after: int = setting(100, "steps without a point after which a code moves")

    def __post_init__(self) -> None:
        require_trunk(self)
        require(self.code_dim >= 2, f"codes of {self.code_dim} dimensions", "use at least 2")
        require(self.commitment >= 0, f"a commitment of {self.commitment}", "use 0 or more")
        require(0 <= self.decay < 1, f"a decay of {self.decay}", "use one in [0, 1)")
        require(self.dead_after >= 1, f"codes dead after {self.dead_after} steps", "use at least 1")

    def build(self, seed: int = 0) -> "VectorQuantised":
        """A network with random weights, which are a function of the seed."""
        return drawn(lambda: VectorQuantised(self), seed)


class VectorQuantised(Quantised):
    """Points and codes are unit vectors; the buffers are the codebook and the state of its EMA."""

    config: VQ
    codes: Tensor
    sizes: Tensor
    sums: Tensor
    unused: Tensor

    def __init__(self, config: VQ) -> None:
        super().__init__(config, config.code_dim)
        self.commitment = config.commitment
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

    @torch.no_grad()
    def initialise_from(self, images: Tensor, order: Int[Tensor, "n"]) -> None:
        """Initialise by k-means on patches: points are their principal components and a constant, at unit length.

        Because of the constant, patches that differ only in length (contrast) differ in direction too.
        """
        sample = self.sample(images)
        shown = min(self.code_dim - 1, self.width)
        weight = torch.zeros(self.code_dim, self.width)
        weight[:shown, :shown] = torch.eye(shown) * 0.5 / sample.points[:, :shown].square().sum(1).mean().sqrt()
        bias = torch.zeros(self.code_dim)
        bias[-1] = 1.0
        points = self.placed(sample.points @ weight.t() + bias)
        self.set_book(started(kmeans(points, self.vocab_size, order[order < len(points)])))
        self.start_as_projection(sample, weight, bias)

    def placed(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        """Vectors scaled to unit length."""
        return F.normalize(x, dim=-1)

    def nearest(self, points: Float[Tensor, "*B d"]) -> Int[Tensor, "*B"]:
        """The code with the greatest cosine similarity, in [0, V)."""
        with float32(points):
            return nearest(points, self.codes)

    def values(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B d"]:
        """The codes with these indices."""
        return F.embedding(ids, self.codes)

    @torch.no_grad()
    def follow(self, points: Float[Tensor, "n d"], ids: Int[Tensor, "n"], step: int) -> None:
        """Update the codes by EMA, and move those without points for `dead_after` steps to some of these points."""
        moved = followed(self.book, points, ids, self.config.decay)
        self.set_book(revived(moved, points, step, self.config.dead_after))

    def meters(self) -> dict[str, Tensor]:
        """Share of the codes that are not dead, and perplexity of their use, both over the last steps."""
        alive = (self.unused < max(self.config.dead_after // 2, 1)).float().mean()
        return {"alive": alive, "perplexity": entropy(self.sizes).exp().float()}
