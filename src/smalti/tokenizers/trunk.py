"""The common encoder and decoder of dvae.py and quantised.py, at the resolution of the tokens.

encoder  patch embedding -> residual 3x3 blocks
...      the bottleneck, from feature vector to token and back: dvae.py, quantised.py
decoder  residual 3x3 blocks -> mean and log-scale of a logit-Laplace distribution for every pixel of the patch
"""

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from smalti.core.config import require
from smalti.core.errors import DataError
from smalti.functional.losses import LAPLACE_EPSILON, most_likely_pixels
from smalti.functional.patches import varied_patches
from smalti.models.vit import as_unit_range
from smalti.tokenizers.image_tokenizer import ImageTokenizer, TokenizerConfig, require_tokens


class TrunkConfig(TokenizerConfig, Protocol):
    """A tokenizer's configuration with the size of the network."""

    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...


def require_trunk(config: TrunkConfig) -> None:
    """Check the sizes of the network.

    Raises:
        UsageError: one of them is invalid; the message names it.
    """
    require_tokens(config)
    require(config.width >= 1, f"a width of {config.width}", "use at least 1")
    require(config.depth >= 0, f"a depth of {config.depth}", "use 0 or more")


class ResidualBlock(nn.Module):
    """x + 1x1(relu(3x3(x))); the branch starts at zero, so at first a block is the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, width, kernel_size=1)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        for parameter in (self.conv1.bias, self.conv2.weight, self.conv2.bias):
            assert parameter is not None
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        return x + self.conv2(F.relu(self.conv1(x)))


class PatchSample(NamedTuple):
    """Patches of a sample of images, on the logit scale of the likelihood.

    Attributes:
        mean: of all patches, P.
        directions: principal directions, width x P, orthonormal rows.
        points: principal components of the patches with more than one colour, n x width.
    """

    mean: Float[Tensor, "P"]
    directions: Float[Tensor, "D P"]
    points: Float[Tensor, "n D"]


class Trunk(ImageTokenizer):
    """Encoder and decoder, which apply the pixel map [0, 1] -> [ε, 1-ε] themselves."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__(config)
        self.width, self.depth, self.num_pixels = config.width, config.depth, config.in_chans * config.stride**2
        self.embed = nn.Conv2d(self.num_pixels, self.width, kernel_size=1)
        self.encoder = self._blocks()

    def add_decoder(self) -> None:
        """Add the decoder; subclasses call it last, so that weights are drawn in the order of the forward pass."""
        self.decoder = self._blocks()
        self.to_pixels = nn.Conv2d(self.width, 2 * self.num_pixels, kernel_size=1)
        self.to(memory_format=torch.channels_last)

    def _blocks(self) -> nn.Sequential:
        return nn.Sequential(*(ResidualBlock(self.width) for _ in range(self.depth)))

    def features(self, images: Tensor) -> Float[Tensor, "B D h w"]:
        """The output of the encoder for images, uint8 or float in [0, 1]."""
        patches = self._patches(images)
        with float32(patches):
            embedded = self.embed(patches)
        return self.encoder(embedded)

    def pixel_distribution(
        self, features: Float[Tensor, "B D h w"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
        """μ and ln b of the logit-Laplace distribution of every sub-pixel."""
        decoded = self.decoder(features.float())
        with float32(features):
            mean, log_scale = self.to_pixels(decoded.float()).chunk(2, dim=1)
        return F.pixel_shuffle(mean, self.stride), F.pixel_shuffle(log_scale, self.stride)

    def most_likely_image(self, features: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
        """The most likely image given the decoder's input, in [0, 1]."""
        return most_likely_pixels(self.pixel_distribution(features)[0]).clamp(0, 1)

    def sample(self, images: Tensor) -> PatchSample:
        """The statistics of a sample of images that `initialise_from` needs.

        Patches of a single colour are not among the points, as one code represents them.

        Raises:
            DataError: there is no patch with more than one colour.
        """
        patches = self._patches(images).float().permute(0, 2, 3, 1).flatten(0, 2)
        mean, varied = patches.mean(0), patches[known_varied_patches(images, self.stride).flatten()]
        directions = principal_directions(patches - mean, self.width)
        return PatchSample(mean, directions, (varied - mean) @ directions.t())

    def set_projections(self, sample: PatchSample, unit: Tensor) -> None:
        """Set the encoder to a projection on principal directions in units of `unit`, the decoder to its inverse."""
        mean, directions = sample.mean, sample.directions / unit
        set_conv(self.embed, directions, -directions @ mean)
        painted = torch.cat([directions.t() * unit**2, torch.zeros_like(directions.t())])
        set_conv(self.to_pixels, painted, torch.cat([mean, torch.full_like(mean, math.log(0.5 * float(unit)))]))

    def _patches(self, images: Tensor) -> Float[Tensor, "B P h w"]:
        """Pixels of each patch as channels, on the logit scale of the likelihood."""
        x = (1 - 2 * LAPLACE_EPSILON) * as_unit_range(images) + LAPLACE_EPSILON
        return F.pixel_unshuffle(torch.logit(x), self.stride).contiguous(memory_format=torch.channels_last)


def known_varied_patches(images: Tensor, size: int) -> Bool[Tensor, "B N"]:
    """True where a patch has more than one colour.

    Raises:
        DataError: no patch has.
    """
    varied = varied_patches(images, size)
    if not varied.any():
        raise DataError("every patch of the images has a single colour", fix="train on images that show something")
    return varied


def float32(like: Tensor) -> torch.autocast:
    """No autocast, for the first and the last projection: their values (squared distances) are too large for bf16."""
    return torch.autocast(like.device.type, enabled=False)


def set_conv(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Set the weights of a 1x1 convolution to a matrix and a vector."""
    conv.weight.copy_(weight[:, :, None, None])
    assert conv.bias is not None
    conv.bias.copy_(bias)


def error_unit(points: Float[Tensor, "n D"], centres: Float[Tensor, "V D"], num_pixels: int) -> Float[Tensor, ""]:
    """Root mean square distance per sub-pixel from points to their nearest centres, over the first 4096 points.

    At least a tenth of that from the origin: with hardly more points than centres, each point has one of its own.
    """
    unit = torch.cdist(points[:4096], centres).amin(1).square().mean().div(num_pixels).sqrt()
    spread = points[:4096].square().sum(1).mean().div(num_pixels).sqrt()
    return torch.maximum(unit, 0.1 * spread).clamp_min(1e-3)


def principal_directions(points: Float[Tensor, "n P"], width: int) -> Float[Tensor, "{width} P"]:
    """Principal directions as orthonormal rows, by decreasing variance; zero rows where width exceeds P."""
    _, vectors = torch.linalg.eigh(torch.cov(points.t()))
    directions = torch.zeros(width, points.shape[1])
    rank = min(width, points.shape[1])
    directions[:rank] = vectors.flip(1).t()[:rank]
    return directions
