"""Our image tokenizer: a discrete VAE that works at the resolution of its tokens.

encoder  patch embedding -> residual 3x3 blocks -> logits over the codebook, at every position
codebook one vector a visual token
decoder  residual 3x3 blocks -> mean and log-scale of a logit-Laplace distribution for every pixel of the patch
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.config import require, setting
from smalti.core.errors import DataError
from smalti.functional.kmeans import kmeans
from smalti.functional.losses import LAPLACE_EPSILON
from smalti.models.vit import as_unit_range

MAX_VOCAB = 16384


@dataclass(frozen=True)
class DVAE:
    """Configuration of the tokenizer; `build()` makes it."""

    vocab_size: int = setting(512, "visual tokens", "BEiT §2.1.2 uses 8192")
    stride: int = setting(8, "pixels between tokens", "BEiT §2.1.2: 112 / 14")
    in_chans: int = setting(3, "channels")
    width: int = setting(64, "channels")
    depth: int = setting(2, "residual blocks in the encoder and in the decoder")

    def __post_init__(self) -> None:
        require(2 <= self.vocab_size <= MAX_VOCAB, f"a vocabulary of {self.vocab_size}", f"use 2 to {MAX_VOCAB}")
        require(self.stride in (4, 8, 16), f"a stride of {self.stride} pixels", "use 4, 8 or 16")
        require(self.width >= 1, f"a width of {self.width}", "use at least 1")
        require(self.depth >= 0, f"a depth of {self.depth}", "use 0 or more")

    def build(self, seed: int = 0) -> "DiscreteVAE":
        """A network with freshly drawn weights, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return DiscreteVAE(self)


class ResidualBlock(nn.Module):
    """x + 1x1(relu(3x3(x))); the branch starts at zero, so that depth costs nothing at the start."""

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


class DiscreteVAE(nn.Module):
    """q(z|x): `logits`; p(x|z): `distribution`. The pixel map [0, 1] -> [ε, 1-ε] is inside."""

    def __init__(self, config: DVAE) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.stride = config.vocab_size, config.stride
        pixels, width = config.in_chans * config.stride**2, config.width
        self.embed = nn.Conv2d(pixels, width, kernel_size=1)
        self.encoder = nn.Sequential(*(ResidualBlock(width) for _ in range(config.depth)))
        self.to_logits = nn.Conv2d(width, config.vocab_size, kernel_size=1)
        self.codebook = nn.Conv2d(config.vocab_size, width, kernel_size=1, bias=False)
        self.decoder = nn.Sequential(*(ResidualBlock(width) for _ in range(config.depth)))
        self.to_pixels = nn.Conv2d(width, 2 * pixels, kernel_size=1)
        self.to(memory_format=torch.channels_last)

    def logits(self, images: Tensor) -> Float[Tensor, "B V h w"]:
        """Scores of every visual token at every position.

        Args:
            images: B C H W, uint8 or float in [0, 1], sides multiples of the stride.
        """
        patches = self._patches(images)
        with _float32(patches):
            embedded = self.embed(patches)
        features = self.encoder(embedded)
        with _float32(patches):
            return self.to_logits(features.float())

    def distribution(
        self, weights: Float[Tensor, "B V h w"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
        """Mean and log-scale of the logit-Laplace distribution of every sub-pixel, for relaxed or one-hot tokens."""
        return self._pixels(self.codebook(weights))

    @torch.no_grad()
    def initialise_from(self, images: Tensor, order: Int[Tensor, "n"]) -> None:
        """Start as a mixture of Gaussians fitted to patches, so that the whole codebook is in use from the first step.

        The embedding projects patches on their principal directions, in units of the distance to the nearest of V
        k-means centres; the centres are the codebook, the logits their posterior probabilities, and the decoder paints
        a centre. A Gumbel-softmax tokenizer that starts from random weights finds a few dozen codes and keeps to them.

        Args:
            images: a sample of the training images. Constant patches do not count: one code would be enough for them.
            order: a permutation of at least as many numbers as there are patches in the sample.

        Raises:
            DataError: there is no patch with more than one colour.
        """
        patches = self._patches(images).float().permute(0, 2, 3, 1).flatten(0, 2)
        mean = patches.mean(0)
        varied = patches[(patches != patches[:, :1]).any(1)]
        if len(varied) == 0:
            raise DataError("every patch of the images has a single colour", fix="train on images that show something")
        directions = _principal_directions(patches - mean, self.config.width)
        points = (varied - mean) @ directions.t()
        centres = kmeans(points, self.vocab_size, order[order < len(points)])
        unit = torch.cdist(points[:4096], centres).amin(1).square().mean().div(patches.shape[1]).sqrt().clamp_min(1e-3)
        directions, centres = directions / unit, centres / unit
        self._set(self.embed, directions, -directions @ mean)
        self._set(self.to_logits, centres, -0.5 * centres.square().sum(1))
        self.codebook.weight.copy_(centres.t()[:, :, None, None])
        painted = torch.cat([directions.t() * unit**2, torch.zeros_like(directions.t())])
        self._set(self.to_pixels, painted, torch.cat([mean, torch.full_like(mean, math.log(0.5 * float(unit)))]))

    @staticmethod
    def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
        conv.weight.copy_(weight[:, :, None, None])
        assert conv.bias is not None
        conv.bias.copy_(bias)

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The most likely visual token at every position."""
        return self.logits(images).argmax(dim=1)

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The most likely image for these tokens, in [0, 1]."""
        codes = F.embedding(ids, self.codebook.weight[:, :, 0, 0].t()).permute(0, 3, 1, 2)
        mean, _ = self._pixels(codes)
        return ((mean.float().sigmoid() - LAPLACE_EPSILON) / (1 - 2 * LAPLACE_EPSILON)).clamp(0, 1)

    def _patches(self, images: Tensor) -> Float[Tensor, "B P h w"]:
        """Pixels of each patch as channels, on the logit scale of the likelihood."""
        x = (1 - 2 * LAPLACE_EPSILON) * as_unit_range(images) + LAPLACE_EPSILON
        return F.pixel_unshuffle(torch.logit(x), self.stride).contiguous(memory_format=torch.channels_last)

    def _pixels(self, codes: Float[Tensor, "B D h w"]) -> tuple[Tensor, Tensor]:
        features = self.decoder(codes.float())
        with _float32(codes):
            mean, log_scale = self.to_pixels(features.float()).chunk(2, dim=1)
        return F.pixel_shuffle(mean, self.stride), F.pixel_shuffle(log_scale, self.stride)


def _float32(like: Tensor) -> torch.autocast:
    """The projections in and out are cheap, and their values (squared distances) are too large for bf16."""
    return torch.autocast(like.device.type, enabled=False)


def _principal_directions(points: Float[Tensor, "n P"], width: int) -> Float[Tensor, "{width} P"]:
    """Orthonormal rows of greatest variance, the first one the greatest; zero rows where width exceeds P."""
    _, vectors = torch.linalg.eigh(torch.cov(points.t()))
    directions = torch.zeros(width, points.shape[1])
    rank = min(width, points.shape[1])
    directions[:rank] = vectors.flip(1).t()[:rank]
    return directions
