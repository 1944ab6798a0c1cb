"""Tokenizers with a quantised bottleneck: a learned codebook (VQ), or levels without one (FSQ).

encoder -> point (a vector of few dimensions at each position) -> the nearest quantised value -> decoder
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.config import require, setting
from smalti.functional.codebook import fsq_bound, fsq_ids, fsq_round, fsq_values, kmeans, new_codebook
from smalti.functional.gumbel_relaxation import straight_through
from smalti.models.layers import seeded
from smalti.tokenizers.ema_codebook import EMACodebookTokenizer, require_codebook
from smalti.tokenizers.trunk import PatchSample, Trunk, TrunkConfig, float32, require_trunk, set_conv


class Quantised(Trunk):
    """A trunk with a quantiser between encoder and decoder."""

    commitment: float
    """Weight of the commitment loss, the mean squared distance of points to their values."""

    def __init__(self, config: TrunkConfig, code_dim: int) -> None:
        super().__init__(config)
        self.code_dim = code_dim
        self.to_code = nn.Conv2d(config.width, code_dim, kernel_size=1)
        self.from_code = nn.Conv2d(code_dim, config.width, kernel_size=1)
        self.add_decoder()

    def to_code_space(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        """Vectors mapped into the space of the quantised values."""
        raise NotImplementedError

    def nearest(self, points: Float[Tensor, "*B d"]) -> Int[Tensor, "*B"]:
        """The index in [0, V) of the value nearest to each point."""
        raise NotImplementedError

    def values(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B d"]:
        """The value with each index."""
        raise NotImplementedError

    def meters(self) -> dict[str, Tensor]:
        """Metrics of codebook use for the progress line; empty where there is no codebook."""
        return {}

    def points(self, images: Tensor) -> Float[Tensor, "B h w d"]:
        """The encoder's point at every position, in float32."""
        features = self.features(images)
        with float32(features):
            return self.to_code_space(self.to_code(features.float()).permute(0, 2, 3, 1))

    def reconstruct(self, points: Float[Tensor, "B h w d"], ids: Int[Tensor, "B h w"]) -> tuple[Tensor, Tensor]:
        """μ and ln b of the logit-Laplace distribution of every sub-pixel, B x C x H x W each.

        They are decoded from the quantised values; gradients go to the points (straight-through).
        """
        return self.distribution(straight_through(self.values(ids), points))

    def distribution(self, values: Float[Tensor, "B h w d"]) -> tuple[Tensor, Tensor]:
        """μ and ln b of the logit-Laplace distribution of every sub-pixel, B x C x H x W each, given the values."""
        return self.pixel_distribution(self._decoder_input(values))

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The nearest code at every position."""
        return self.nearest(self.points(images))

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The most likely image given the tokens, in [0, 1]."""
        return self.most_likely_image(self._decoder_input(self.values(ids)))

    def _decoder_input(self, values: Float[Tensor, "B h w d"]) -> Float[Tensor, "B D h w"]:
        with float32(values):
            return self.from_code(values.permute(0, 3, 1, 2))

    def initialise_as_projection(
        self, sample: PatchSample, weight: Float[Tensor, "d D"], bias: Float[Tensor, "d"]
    ) -> None:
        """Initialise as a quantiser of a linear projection: the encoder projects, the decoder inverts by least squares.

        Args:
            sample: patches of the training images.
            weight, bias: the projection from principal components of patches to points. The quantised values must
                already be set.
        """
        points = sample.points
        values = self.values(self.nearest(self.to_code_space(points @ weight.t() + bias)))
        known = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
        inverse = torch.linalg.lstsq(known, points).solution
        error = (points - known @ inverse).square().sum(1).mean()
        unit = error.div(self.num_pixels).sqrt().clamp_min(1e-3)
        self.set_projections(sample, unit)
        set_conv(self.to_code, weight * unit, bias)
        set_conv(self.from_code, inverse[:-1].t() / unit, inverse[-1] / unit)


@dataclass(frozen=True)
class VQ:
    """Configuration of the tokenizer."""

    vocab_size: int = setting(512, "visual tokens that there are")
    stride: int = setting(8, "pixels between tokens")
    in_chans: int = setting(3, "channels of an image")
    width: int = setting(64, "channels of the convolutions")
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
        require_codebook(self)

    def build(self, seed: int = 0) -> "VectorQuantised":
        """A network with random weights, which are a function of the seed."""
        return seeded(seed, lambda: VectorQuantised(self))


class VectorQuantised(EMACodebookTokenizer, Quantised):
    """Vector quantisation: unit codes of few dimensions, initialised by k-means and updated by EMA of the points.

    Reference: van den Oord et al. 2017 (VQ-VAE); Yu et al. 2022 (ViT-VQGAN).
    """

    config: VQ

    def __init__(self, config: VQ) -> None:
        super().__init__(config, config.code_dim)
        self.add_codebook(config)

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
        points = self.to_code_space(sample.points @ weight.t() + bias)
        self.set_codebook(new_codebook(kmeans(points, self.vocab_size, order[order < len(points)])))
        self.initialise_as_projection(sample, weight, bias)

    def to_code_space(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        """Vectors scaled to unit length."""
        return F.normalize(x, dim=-1)


@dataclass(frozen=True)
class FSQ:
    """Configuration of the tokenizer."""

    levels: tuple[int, ...] = setting((8, 5, 5, 5), "levels of each number; V is their product", "FSQ §4.1, table 1")
    stride: int = setting(8, "pixels between tokens")
    in_chans: int = setting(3, "channels of an image")
    width: int = setting(64, "channels of the convolutions")
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
        return seeded(seed, lambda: FiniteScalarQuantised(self))


class FiniteScalarQuantised(Quantised):
    """Finite scalar quantisation: a few numbers in [-1, 1] per position, each rounded to a few levels.

    It has no learned codebook that could collapse, no hyperparameters except the levels, and no state.

    Reference: Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2023.
    """

    config: FSQ
    levels: Tensor
    commitment = 0.0

    def __init__(self, config: FSQ) -> None:
        super().__init__(config, len(config.levels))
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)

    @torch.no_grad()
    def initialise_from(self, images: Tensor, order: Int[Tensor, "n"]) -> None:
        """Initialise as a projection to principal components of patches, scaled to the levels; `order` is unused."""
        sample = self.sample(images)
        shown = min(self.code_dim, self.width)
        weight = torch.zeros(self.code_dim, self.width)
        weight[:shown, :shown] = sample.points[:, :shown].std(0, correction=0).clamp_min(1e-3).reciprocal().diag()
        self.initialise_as_projection(sample, weight, torch.zeros(self.code_dim))

    def to_code_space(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        """Vectors mapped into the cube by `fsq_bound`."""
        return fsq_bound(x, self.levels)

    def nearest(self, points: Float[Tensor, "*B d"]) -> Int[Tensor, "*B"]:
        """The index of the rounded point, in [0, V)."""
        return fsq_ids(fsq_round(points, self.levels), self.levels)

    def values(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B d"]:
        """The values of each dimension for an index."""
        return fsq_values(ids, self.levels)
