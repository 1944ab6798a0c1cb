"""Tokenizers whose code is a short vector, replaced by the nearest one that has a number: what vq.py and fsq.py share.

encoder -> point (a short vector a position) -> the nearest value that has a number -> decoder
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.functional.quantize import straight_through
from smalti.tokenizers.trunk import PatchSample, Trunk, TrunkConfig, float32, set_conv


class Quantised(Trunk):
    """A trunk with points and values in the middle."""

    commitment: float
    """What the mean squared distance of a point to its value weighs in the loss."""

    def __init__(self, config: TrunkConfig, code_dim: int) -> None:
        super().__init__(config)
        self.code_dim = code_dim
        self.to_code = nn.Conv2d(config.width, code_dim, kernel_size=1)
        self.from_code = nn.Conv2d(code_dim, config.width, kernel_size=1)
        self.add_decoder()

    def placed(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        """Any vectors as points of the space in which the values lie."""
        raise NotImplementedError

    def nearest(self, points: Float[Tensor, "*B d"]) -> Int[Tensor, "*B"]:
        """The number of the value nearest to each point."""
        raise NotImplementedError

    def values(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B d"]:
        """The value with each number."""
        raise NotImplementedError

    def follow(self, points: Float[Tensor, "n d"], ids: Int[Tensor, "n"], step: int) -> None:
        """Move what is not trained by gradients after a step on these points; of all processes, where there are some.

        Args:
            step: optimiser steps done.
        """

    def meters(self) -> dict[str, Tensor]:
        """How the codebook is used, where it knows; for the progress line."""
        return {}

    def points(self, images: Tensor) -> Float[Tensor, "B h w d"]:
        """Where the encoder places every position; always float32."""
        features = self.features(images)
        with float32(features):
            return self.placed(self.to_code(features.float()).permute(0, 2, 3, 1))

    def reconstructed(self, points: Float[Tensor, "B h w d"], ids: Int[Tensor, "B h w"]) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of the logit-Laplace distribution of every sub-pixel, B C H W each.

        They are those of the values; gradients go straight through to the points.
        """
        return self.pixels(self._read(straight_through(self.values(ids), points)))

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The nearest code at every position."""
        return self.nearest(self.points(images))

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The most likely image for these tokens, in [0, 1]."""
        return self.picture(self._read(self.values(ids)))

    def _read(self, values: Float[Tensor, "B h w d"]) -> Float[Tensor, "B D h w"]:
        with float32(values):
            return self.from_code(values.permute(0, 3, 1, 2))

    def start_as_projection(self, sample: PatchSample, weight: Float[Tensor, "d D"], bias: Float[Tensor, "d"]) -> None:
        """Start as the quantiser of a linear projection: the encoder projects, the decoder inverts by least squares.

        Args:
            weight, bias: from patches along the principal directions to code vectors. The values lie where they should.
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
