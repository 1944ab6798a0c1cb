"""The evidence lower bound of tokenizers with a density p_ψ(x|z)."""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.data.tokens import Scorer
from smalti.functional.losses import LAPLACE_EPSILON, grey_level_nll, logit_laplace_nll, most_likely_pixels
from smalti.functional.metrics import psnr
from smalti.models.vit import as_unit_range

BITS_OF_8_BIT_PIXELS = math.log2(255 / (1 - 2 * LAPLACE_EPSILON))
"""Bits per sub-pixel that turn a density into a probability of 8-bit pixels, whose grey levels are 0.8/255 wide."""
_WEIGHTS = 1 << 24
"""Values of V x h x w code weights that are in memory at a time."""


@runtime_checkable
class Posterior(Scorer, Protocol):
    """A discrete VAE: a tokenizer with a posterior q_φ(z|x), and with p_ψ(x|z) for weights of the codes."""

    def distribution(self, weights: Float[Tensor, "B V h w"]) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of the logit-Laplace distribution of every sub-pixel, B C H W each."""
        ...


@runtime_checkable
class Quantiser(Protocol):
    """A tokenizer with p_ψ(x|z) for the values of its codes, and with a deterministic encoder."""

    vocab_size: int
    stride: int

    def values(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B d"]:
        """The value of each code."""
        ...

    def distribution(self, values: Float[Tensor, "B h w d"]) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of the logit-Laplace distribution of every sub-pixel, B C H W each."""
        ...


class Bound(NamedTuple):
    """The evidence lower bound of held-out images with hard tokens: means over images.

    -ELBO = D + R, with the distortion D = -ln p_ψ(x|ẑ) and the rate R = -ln p(ẑ) of the most likely tokens ẑ under a
    prior (q_φ is taken as the one-point distribution at ẑ, and β is 1).

    p_ψ is the logit-Laplace density at (1-2ε)·pixel + ε with ε = 0.1, so D may be negative. On that scale a grey level
    of an 8-bit pixel is 0.8/255 wide, which adds log2(255/0.8) = 8.32 bits per sub-pixel. That is the midpoint rule and
    too optimistic where the scale is much smaller than a grey level, as in flat areas; `grey_level_nats` is the
    integral, a probability of 8-bit images. The density below 0.1 and above 0.9 belongs to no pixel, which makes both
    a little worse than possible.

    Attributes:
        distortion_nats: D per image.
        uniform_rate_nats: R under the uniform prior, N·ln V per image.
        unigram_rate_nats: R under the token frequencies of these same images, N times their entropy.
        sub_pixels: C·H·W.
        grey_level_nats: D per image by the probability of grey levels.
    """

    distortion_nats: float
    uniform_rate_nats: float
    unigram_rate_nats: float
    sub_pixels: int
    grey_level_nats: float

    @property
    def elbo_nats(self) -> float:
        """The bound under the uniform prior, in nats per image."""
        return -(self.distortion_nats + self.uniform_rate_nats)

    @property
    def bits_per_dim(self) -> float:
        """-ELBO under the uniform prior, in bits per sub-pixel of an 8-bit image."""
        return self._bits(self.uniform_rate_nats)

    @property
    def bits_per_dim_unigram(self) -> float:
        """-ELBO under the unigram prior, in bits per sub-pixel of an 8-bit image."""
        return self._bits(self.unigram_rate_nats)

    @property
    def grey_level_bits_per_dim(self) -> float:
        """-ELBO under the uniform prior by the probability of grey levels, in bits per sub-pixel."""
        return bits_per_dim(self.grey_level_nats + self.uniform_rate_nats, self.sub_pixels)

    def _bits(self, rate: float) -> float:
        return bits_per_dim(self.distortion_nats + rate, self.sub_pixels) + BITS_OF_8_BIT_PIXELS


def bits_per_dim(nats: float, sub_pixels: int) -> float:
    """Nats per image as bits per sub-pixel, to which `BITS_OF_8_BIT_PIXELS` is to be added for a density."""
    return nats / (sub_pixels * math.log(2))


@torch.no_grad()
def soft_psnr(tokenizer: Posterior, images: Tensor, compute: Compute) -> float:
    """Mean PSNR over images in dB, where the posterior's probabilities are decoded instead of its most likely token."""
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
    """The bound of images with their hard tokens.

    Args:
        images: B C H W, uint8 or float in [0, 1].
        ids: their most likely tokens, in [0, V).
        unigram_entropy: of these tokens, in nats.

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
    """D = -ln p_ψ(x|ẑ) of each image in nats, by the density (see `Bound`) and by the probability of grey levels."""

    density: Float[Tensor, "B"]
    grey_levels: Float[Tensor, "B"]


@torch.no_grad()
def distortion(
    tokenizer: Posterior | Quantiser, images: Tensor, ids: Int[Tensor, "B N"], compute: Compute
) -> Distortion:
    """The distortion of images, B C H W, uint8 or float in [0, 1], with their hard tokens."""
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
    """Images per batch."""
    positions = images.shape[-2] * images.shape[-1] // tokenizer.stride**2
    return max(1, _WEIGHTS // (positions * tokenizer.vocab_size))


def _given_tokens(tokenizer: Posterior | Quantiser, ids: Int[Tensor, "B h w"]) -> tuple[Tensor, Tensor]:
    """μ and ln b of p_ψ(x|z) for hard tokens."""
    if not isinstance(tokenizer, Posterior):
        return tokenizer.distribution(tokenizer.values(ids))
    one_hot = torch.zeros(len(ids), tokenizer.vocab_size, *ids.shape[1:], device=ids.device)
    return tokenizer.distribution(one_hot.scatter_(1, ids[:, None], 1.0))
