"""The losses of both stages and of fine-tuning, in nats."""

import math
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

from smalti.functional.metrics import VOID

LAPLACE_EPSILON = 0.1
"""Pixels are mapped from [0, 1] to [ε, 1 - ε] before the logit (DALL-E, appendix A.3)."""

Likelihood: TypeAlias = Literal["logit_laplace", "mse", "l1"]
"""How a reconstruction is compared with its image."""


def masked_token_loss(
    logits: Float[Tensor, "B K V"], target: Int[Tensor, "B K"], weight: Float[Tensor, "B K"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of visual tokens at masked positions: -Σ_{i∈M} log p_MIM(z_i | x^M).

    Args:
        logits: unnormalised log-probabilities of the V visual tokens at each masked position.
        target: the tokenizer's visual tokens there, in [0, V).
        weight: 1 for a masked position, 0 for padding.

    Returns:
        The sum over masked positions in nats, and the number of masked positions.

    Reference: BEiT eq. 1.
    Differs: the paper writes a sum; like the released code, the loop divides by the number of masked patches.
    """
    nats = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), reduction="none")
    return (nats * weight.flatten()).sum(), weight.sum()


def cosine_distance(predicted: Float[Tensor, "*B F"], target: Float[Tensor, "*B F"]) -> Float[Tensor, "*B"]:
    """1 - cos(predicted, target), in [0, 2], in float32; 1 where one of them is zero.

    Reference: Peng et al. 2022 (BEiT v2), which maximises the cosine.
    """
    return 1 - (F.normalize(predicted.float(), dim=-1) * F.normalize(target.float(), dim=-1)).sum(-1)


def logit_laplace_nll(
    pixels: Float[Tensor, "B C H W"], mu: Float[Tensor, "B C H W"], log_scale: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """Negative log-density of each sub-pixel under the logit-Laplace distribution, in nats.

    -ln f(x | μ, b) = ln 2b + ln x(1-x) + |logit x - μ| / b, at x = (1-2ε)·pixel + ε.

    f is a density on (0, 1), not a probability of 8-bit values, so the result may be negative.

    Args:
        pixels: in [0, 1].
        mu: μ, in logits.
        log_scale: ln b.

    Reference: DALL-E, appendix A.3.
    """
    x = (1 - 2 * LAPLACE_EPSILON) * pixels + LAPLACE_EPSILON
    distance = (torch.logit(x) - mu).abs()
    return math.log(2.0) + log_scale + torch.log(x * (1 - x)) + distance * torch.exp(-log_scale)


def grey_level_nll(
    pixels: Float[Tensor, "B C H W"], mu: Float[Tensor, "B C H W"], log_scale: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """-ln of the probability of each sub-pixel's grey level: the logit-Laplace density integrated over it, in nats.

    A level of an 8-bit image reaches from pixel - 1/510 to pixel + 1/510. Density times width is a good approximation
    where b is large compared with a level. Where b is smaller (in flat black areas), that product can exceed 1; the
    integral cannot.

    Args:
        pixels: in [0, 1], multiples of 1/255.
        mu: μ, in logits.
        log_scale: ln b.

    Returns:
        Values ≥ 0.
    """
    half = 0.5 / 255
    ends = (torch.logit((1 - 2 * LAPLACE_EPSILON) * (pixels + step) + LAPLACE_EPSILON) for step in (-half, half))
    low, high = ((end - mu) * torch.exp(-log_scale) for end in ends)
    near, far = torch.minimum(low.abs(), high.abs()), torch.maximum(low.abs(), high.abs())
    one_side = near - torch.log(-torch.expm1(near - far))
    both_sides = -torch.log(-torch.expm1(-near) - torch.expm1(-far))
    return math.log(2.0) + torch.where(low * high > 0, one_side, both_sides)


def most_likely_pixels(mu: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The medians of logit-Laplace distributions as pixels: (sigmoid(μ) - ε) / (1-2ε), not clamped to [0, 1].

    Reference: DALL-E, appendix A.3.
    """
    return (mu.float().sigmoid() - LAPLACE_EPSILON) / (1 - 2 * LAPLACE_EPSILON)


def squared_error(pixels: Float[Tensor, "B C H W"], predicted: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """(x - x̂)² of each sub-pixel in [0, 1]; PSNR is computed from its mean over an image."""
    return (pixels - predicted).square()


def absolute_error(pixels: Float[Tensor, "B C H W"], predicted: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """|x - x̂| of each sub-pixel in [0, 1]."""
    return (pixels - predicted).abs()


def reconstruction_loss(
    likelihood: Likelihood,
    pixels: Float[Tensor, "B C H W"],
    mu: Float[Tensor, "B C H W"],
    log_scale: Float[Tensor, "B C H W"],
) -> Float[Tensor, "B C H W"]:
    """The loss of each sub-pixel: nats for `logit_laplace`, else the error of `most_likely_pixels` (no scale)."""
    if likelihood == "logit_laplace":
        return logit_laplace_nll(pixels, mu, log_scale)
    error = squared_error if likelihood == "mse" else absolute_error
    return error(pixels, most_likely_pixels(mu))


def kl_to_uniform(logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """KL(q ‖ uniform) = ln V - H(q) of q = softmax(logits) at each position, in nats, in [0, ln V].

    Reference: DALL-E, appendix A.2: the KL of the categorical q itself, although its samples are relaxed.
    """
    log_q = F.log_softmax(logits, dim=-1)
    return math.log(logits.shape[-1]) + (log_q.exp() * log_q).sum(-1)


def kl_weight(beta: float, channels: int, stride: int) -> float:
    """The weight β/(C·stride²) of the KL in nats per position, in a loss whose NLL is in nats per sub-pixel.

    There are C·stride² sub-pixels per position, and the loss is the negative evidence lower bound divided by the number
    of sub-pixels. So β = 1 is the bound itself, and the paper's β = 6.6 becomes 6.6/192 for 3 channels and stride 8.

    Reference: DALL-E, appendix A.2.
    """
    return beta / (channels * stride**2)


def marginal_entropy(mean_posterior: Float[Tensor, "V"]) -> Float[Tensor, ""]:
    """Entropy of the mean of q over all positions of the batch, in nats, in [0, ln V].

    Maximising it makes all codes be used, without making q uncertain at single positions, as the KL does.
    """
    nats: Tensor = -(mean_posterior * mean_posterior.clamp_min(torch.finfo(mean_posterior.dtype).tiny).log()).sum()
    return nats


def soft_cross_entropy(
    logits: Float[Tensor, "*B V"], scores: Float[Tensor, "*B V"]
) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """Cross-entropy of a prediction p with a target distribution q, at each position: -Σ_z q(z) ln p(z).

    Args:
        logits: of p.
        scores: logits of q.

    Returns:
        The cross-entropy and its lower bound, the entropy H(q), in nats. Their difference is KL(q ‖ p).

    Reference: BEiT §2.4, eq. 2: its KL, before eq. 3 takes for q the one-point distribution at its most likely token.
    """
    log_q, log_p = (F.log_softmax(values.float(), dim=-1) for values in (scores, logits))
    q = log_q.exp()
    return -(q * log_p).sum(-1), -(q * log_q).sum(-1)


def class_cross_entropy(
    logits: Float[Tensor, "B classes"], target: Float[Tensor, "B classes"], smoothing: float = 0.0
) -> Float[Tensor, "B"]:
    """Cross-entropy of each image with label smoothing: -Σ_c ((1-s)·t_c + s/C) ln p_c, in nats.

    Args:
        logits: of p.
        target: t, the distribution over the C classes; one-hot, or mixed by mixup and CutMix.
        smoothing: s in [0, 1), the share that is spread evenly over the classes.

    Reference: Szegedy et al. 2016, §7.
    """
    return F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=smoothing)


def label_cross_entropy(
    logits: Float[Tensor, "B labels"], target: Float[Tensor, "B labels"], smoothing: float = 0.0
) -> Float[Tensor, "B"]:
    """Binary cross-entropy of each image, the mean over its known labels: -(t ln p + (1-t) ln(1-p)), in nats.

    Args:
        logits: of p, one per label.
        target: t, 1 where the image has the label and 0 where not; in between where images are mixed; NaN where it is
            not known. The result is 0 for an image without any known label.
        smoothing: s in [0, 1); t becomes (1-s)·t + s/2.
    """
    known = ~target.isnan()
    smoothed = (1 - smoothing) * target.nan_to_num() + smoothing / 2
    nats = F.binary_cross_entropy_with_logits(logits.float(), smoothed, reduction="none")
    return (nats * known).mean(1) * (target.shape[1] / known.sum(1).clamp(min=1))


def pixel_cross_entropy(
    scores: Float[Tensor, "B classes H W"], label_map: Integer[Tensor, "B H W"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of the class of every pixel: -Σ ln p(class of pixel).

    Args:
        scores: logits of the classes at each pixel.
        label_map: class of each pixel, or `VOID`.

    Returns:
        The sum over pixels that are not void, in nats, and the number of those pixels.
    """
    nats = F.cross_entropy(scores.float(), label_map.long(), ignore_index=VOID, reduction="sum")
    return nats, (label_map != VOID).sum().to(nats.dtype)


def patch_error(
    predicted: Float[Tensor, "*B P"], patches: Float[Tensor, "*B P"], kind: Literal["mse", "l1"]
) -> Float[Tensor, "*B"]:
    """Squared or absolute error, the mean over the P values of each patch.

    Reference: He et al. 2021, MAE (squared); Xie et al. 2021, SimMIM (absolute).
    """
    error = predicted.float() - patches
    return (error.square() if kind == "mse" else error.abs()).mean(-1)


def weights_of_equal_images(weight: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Weights that give every image the same influence, however many of its patches are masked: w / Σ_k w.

    With the original weights, an image counts in proportion to the number of its masked patches. The new weights sum to
    the number of images with masked patches, so sums over micro-batches remain exact.

    Args:
        weight: 1 for a masked patch, 0 for padding.
    """
    return weight / weight.sum(1, keepdim=True).clamp_min(1)
