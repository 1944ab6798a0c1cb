"""A discrete VAE as what it is: a model of images with a bound on their likelihood."""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.functional.losses import LAPLACE_EPSILON, grey_level_nll, logit_laplace_nll, most_likely_pixels
from smalti.functional.metrics import psnr
from smalti.models.vit import as_unit_range

BITS_OF_8_BIT_PIXELS = math.log2(255 / (1 - 2 * LAPLACE_EPSILON))
"""A grey level is 0.8/255 wide on the scale of the density: so many bits name the pixel instead of the point."""
_WEIGHTS = 1 << 24
"""Numbers in the weights of all codes at all positions that are held at a time."""


@runtime_checkable
class Posterior(Protocol):
    """A tokenizer with q(z|x), and with p(x|z) for any weights of the codes: a discrete VAE."""

    vocab_size: int
    stride: int

    def logits(self, images: Tensor) -> Float[Tensor, "B V h w"]:
        """Scores of every visual token at every position."""
        ...

    def distribution(self, weights: Float[Tensor, "B V h w"]) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of the logit-Laplace distribution of every sub-pixel, B C H W each."""
        ...


@runtime_checkable
class Quantiser(Protocol):
    """A tokenizer with p(x|z) for the vectors that its codes stand for; it has no q but its choice."""

    vocab_size: int
    stride: int

    def values(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B d"]:
        """The vector of each code."""
        ...

    def distribution(self, values: Float[Tensor, "B h w d"]) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of the logit-Laplace distribution of every sub-pixel, B C H W each."""
        ...


class Bound(NamedTuple):
    """What hard tokens say about held-out images: means over images.

    -ELBO = D + R, with D = -ln p(x|ẑ) the distortion and R the rate: what it costs to name the tokens ẑ themselves, the
    most likely ones, to somebody who knows the prior alone (q is taken as the one-point distribution at ẑ, and β is 1).

    p is the logit-Laplace density at (1-2ε)·pixel + ε with ε = 0.1. A density is no probability: D may be negative.
    For 8-bit pixels a grey level is 0.8/255 wide on that scale, which adds log2(255/0.8) = 8.32 bits a sub-pixel; that
    is the midpoint rule, not an integral, so a scale far below a grey level is credited too much: flat areas bring that
    about, and `grey_level_nats` holds the integral, a probability of 8-bit images. And ε leaks:
    what the density puts below 0.1 and above 0.9 belongs to no pixel, so the figures are a little worse than need be.

    Attributes:
        distortion_nats: D an image.
        uniform_rate_nats, unigram_rate_nats: N·ln V; N times the entropy of the tokens of these very images.
        sub_pixels: C·H·W.
        grey_level_nats: D an image, of its grey levels.
    """

    distortion_nats: float
    uniform_rate_nats: float
    unigram_rate_nats: float
    sub_pixels: int
    grey_level_nats: float

    @property
    def elbo_nats(self) -> float:
        """The bound under the uniform prior, in nats an image."""
        return -(self.distortion_nats + self.uniform_rate_nats)

    @property
    def bits_per_dim(self) -> float:
        """The same as a cost: bits a sub-pixel of an 8-bit image."""
        return self._bits(self.uniform_rate_nats)

    @property
    def bits_per_dim_unigram(self) -> float:
        """The cost where the prior is how frequent each token is."""
        return self._bits(self.unigram_rate_nats)

    @property
    def grey_level_bits_per_dim(self) -> float:
        """The cost under the uniform prior by the probability of grey levels."""
        return bits_per_dim(self.grey_level_nats + self.uniform_rate_nats, self.sub_pixels)

    def _bits(self, rate: float) -> float:
        return bits_per_dim(self.distortion_nats + rate, self.sub_pixels) + BITS_OF_8_BIT_PIXELS


def bits_per_dim(nats: float, sub_pixels: int) -> float:
    """Nats an image as bits a sub-pixel. What a density says lacks `BITS_OF_8_BIT_PIXELS`; a rate lacks nothing."""
    return nats / (sub_pixels * math.log(2))


@torch.no_grad()
def soft_psnr(tokenizer: Posterior, images: Tensor, compute: Compute) -> float:
    """Mean PSNR over images where the posterior itself is decoded instead of its most likely token, in dB."""
    ratios = []
    for part in images.split(_chunk(tokenizer, images)):
        batch = as_unit_range(part.to(compute.device))
        with compute.autocast():
            mean, _ = tokenizer.distribution(F.softmax(tokenizer.logits(batch).float(), dim=1))
        ratios.append(psnr(batch, most_likely_pixels(mean).clamp(0, 1)).cpu())
    return float(torch.cat(ratios).mean())


@torch.no_grad()
def measure_bound(
    tokenizer: Posterior | Quantiser, images: Tensor, ids: Int[Tensor, "B N"], unigram_entropy: float, compute: Compute
) -> Bound:
    """Measure images (uint8 or in [0, 1]) with these hard tokens, whose unigram entropy is given in nats.

    Reference: BEiT §2.4, eq. 2: the first stage, with a uniform prior.
    """
    cost = distortion(tokenizer, images, ids, compute)
    return Bound(
        distortion_nats=float(cost.density.mean()),
        uniform_rate_nats=ids.shape[1] * math.log(tokenizer.vocab_size),
        unigram_rate_nats=ids.shape[1] * unigram_entropy,
        sub_pixels=images[0].numel(),
        grey_level_nats=float(cost.grey_levels.mean()),
    )


class Distortion(NamedTuple):
    """D = -ln p(x|ẑ) of each image in nats: of the density (see `Bound`), and of 8-bit grey levels, a probability."""

    density: Float[Tensor, "B"]
    grey_levels: Float[Tensor, "B"]


@torch.no_grad()
def distortion(
    tokenizer: Posterior | Quantiser, images: Tensor, ids: Int[Tensor, "B N"], compute: Compute
) -> Distortion:
    """Measure images (uint8 or in [0, 1]) with these hard tokens."""
    density, grey_levels, chunk = [], [], _chunk(tokenizer, images)
    grid = (images.shape[-2] // tokenizer.stride, images.shape[-1] // tokenizer.stride)
    for part, codes in zip(images.split(chunk), ids.split(chunk), strict=True):
        with compute.autocast():
            mean, log_scale = _given_tokens(tokenizer, codes.to(compute.device).view(-1, *grid))
        given = as_unit_range(part.to(compute.device)), mean.float(), log_scale.float()
        density.append(logit_laplace_nll(*given).sum((1, 2, 3)).cpu().double())
        grey_levels.append(grey_level_nll(*given).sum((1, 2, 3)).cpu().double())
    return Distortion(torch.cat(density), torch.cat(grey_levels))


def _chunk(tokenizer: Posterior | Quantiser, images: Tensor) -> int:
    """Images at a time."""
    positions = images.shape[-2] * images.shape[-1] // tokenizer.stride**2
    return max(1, _WEIGHTS // (positions * tokenizer.vocab_size))


def _given_tokens(tokenizer: Posterior | Quantiser, ids: Int[Tensor, "B h w"]) -> tuple[Tensor, Tensor]:
    """p(x|z) of hard tokens."""
    if not isinstance(tokenizer, Posterior):
        return tokenizer.distribution(tokenizer.values(ids))
    one_hot = torch.zeros(len(ids), tokenizer.vocab_size, *ids.shape[1:], device=ids.device)
    return tokenizer.distribution(one_hot.scatter_(1, ids[:, None], 1.0))
