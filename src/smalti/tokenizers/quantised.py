"""The common base of tokenizers with a quantised bottleneck, vq.py and fsq.py.

encoder -> point (a vector of few dimensions at each position) -> the nearest quantised value -> decoder
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.functional.gumbel_relaxation import straight_through
from smalti.tokenizers.trunk import PatchSample, Trunk, TrunkConfig, float32, set_conv


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

    def placed(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        """Vectors mapped into the space of the quantised values."""
        raise NotImplementedError

    def nearest(self, points: Float[Tensor, "*B d"]) -> Int[Tensor, "*B"]:
        """The index in [0, V) of the value nearest to each point."""
        raise NotImplementedError

    def values(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B d"]:
        """The value with each index."""
        raise NotImplementedError

    def follow(self, points: Float[Tensor, "n d"], ids: Int[Tensor, "n"], step: int) -> None:
        """Update what is not trained by gradients, after an optimiser step.

        Args:
            points: those of the step, of all ranks.
            ids: the index assigned to each.
            step: number of optimiser steps done.
        """

    def meters(self) -> dict[str, Tensor]:
        """Metrics of codebook use for the progress line; empty where there is no codebook."""
        return {}

    def points(self, images: Tensor) -> Float[Tensor, "B h w d"]:
        """The encoder's point at every position, in float32."""
        features = self.features(images)
        with float32(features):
            return self.placed(self.to_code(features.float()).permute(0, 2, 3, 1))

    def reconstructed(self, points: Float[Tensor, "B h w d"], ids: Int[Tensor, "B h w"]) -> tuple[Tensor, Tensor]:
        """μ and ln b of the logit-Laplace distribution of every sub-pixel, B x C x H x W each.

        They are decoded from the quantised values; gradients go to the points (straight-through).
        """
        return self.pixels(self._read(straight_through(self.values(ids), points)))

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The nearest code at every position."""
        return self.nearest(self.points(images))

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The most likely image given the tokens, in [0, 1]."""
        return self.picture(self._read(self.values(ids)))

    def _read(self, values: Float[Tensor, "B h w d"]) -> Float[Tensor, "B D h w"]:
        with float32(values):
            return self.from_code(values.permute(0, 3, 1, 2))

    def start_as_projection(self, sample: PatchSample, weight: Float[Tensor, "d D"], bias: Float[Tensor, "d"]) -> None:
        """Initialise as a quantiser of a linear projection: the encoder projects, the decoder inverts by least squares.

        Args:
            sample: patches of the training images.
            weight, bias: the projection from principal components of patches to points. The quantised values must
                already be set.
        """
        points = sample.points
        values = self.values(self.nearest(self.placed(points @ weight.t() + bias)))
        known = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
        inverse = torch.linalg.lstsq(known, points).solution
        error = (points - known @ inverse).square().sum(1).mean()
        unit = error.div(self.num_pixels).sqrt().clamp_min(1e-3)
        self.set_projections(sample, unit)
        set_conv(self.to_code, weight * unit, bias)
        set_conv(self.from_code, inverse[:-1].t() / unit, inverse[-1] / unit)
