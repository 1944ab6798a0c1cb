"""Gumbel-softmax and the straight-through gradient; the bottleneck of a discrete VAE, with its own backward pass.

With 8192 codes the logits of a batch are larger than all its other activations together. With autograd, logits, noise,
sample, log-probabilities and their gradients are ten such tensors. Here two are kept (logits and sample, in the number
format of the codebook); all others are computed for a few positions at a time, which fit into a processor's cache, or
keep a GPU busy.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.functional.codebook import positions_per_chunk
from smalti.functional.losses import kl_to_uniform
from smalti.functional.noise import gumbel_noise

_NUMBERS = 1 << 20
"""Logits that a CPU processes at a time; those of one position at least."""


def gumbel_softmax(
    logits: Float[Tensor, "*B V"], gumbel: Float[Tensor, "*B V"], temperature: Float[Tensor, ""] | float
) -> Float[Tensor, "*B V"]:
    """A relaxed sample of the categorical distribution softmax(logits): softmax((logits + g) / τ).

    Args:
        logits: unnormalised log-probabilities of the V codes.
        gumbel: independent standard Gumbel noise of the same shape (an input, so that a step can be repeated exactly).
        temperature: τ > 0; as τ falls to 0 the sample becomes one-hot.

    Returns:
        Non-negative weights of the codes, summing to 1; gradients flow through them (no straight-through).

    Reference: Jang et al. 2017, eq. 2; Maddison et al. 2017; BEiT §2.1.2; DALL-E, appendix A.2.
    """
    return F.softmax((logits + gumbel) / temperature, dim=-1)


def straight_through(values: Float[Tensor, "*B"], points: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """`values` in the forward pass; in the backward pass the gradient goes to `points`, as if they were the output.

    Reference: Bengio, Léonard and Courville 2013; van den Oord et al. 2017, §3.2.
    """
    return points + (values - points).detach()


class RelaxedTokens(NamedTuple):
    """Relaxed visual tokens of a batch, q being the posterior over the V codes at each position.

    Attributes:
        codes: the codebook vectors weighted by a relaxed sample of q, B x N x d.
        kl: KL(q ‖ uniform), mean over positions, in nats.
        mean_posterior: mean of q over all positions, V.
        best: the greatest logit at every position, B x N, without a gradient.
        ids: the code that has it, B x N, in [0, V).
    """

    codes: Float[Tensor, "B N d"]
    kl: Float[Tensor, ""]
    mean_posterior: Float[Tensor, "V"]
    best: Float[Tensor, "B N"]
    ids: Int[Tensor, "B N"]


def relaxed_tokens(
    features: Float[Tensor, "B N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, "V"],
    codebook: Float[Tensor, "V d"],
    key: Int[Tensor, "B"],
    temperature: float,
    *,
    hard: bool = False,
) -> RelaxedTokens:
    """Sample tokens from q = softmax(W f + b) by Gumbel-softmax, and look up their codebook vectors.

    Args:
        features: output f of the encoder at every position.
        weight, bias: W and b; logits are computed in the number format of `features`.
        codebook: one vector per code; products with it, and gradients, are computed in its number format.
        key: one 64-bit key per image, of which the noise is a function.
        temperature: τ > 0.
        hard: look up only the code of greatest weight, with the gradient of the relaxed sample (straight-through).

    Reference: DALL-E, appendix A.2; Jang et al. 2017, eq. 2.
    """
    batch, positions, _ = features.shape
    place = torch.arange(batch * positions, device=key.device)
    keys, skip = key[place // positions], place % positions * len(weight)
    codes, kl, mean, best, ids = _Relaxed.apply(
        features.flatten(0, 1), weight, bias, codebook, keys, skip, temperature, hard
    )
    shape = (batch, positions)
    return RelaxedTokens(codes.unflatten(0, shape), kl, mean, best.unflatten(0, shape), ids.unflatten(0, shape))


class _Relaxed(torch.autograd.Function):
    """q and y = softmax((s + g) / τ) of the logits s = W f + b, in parts of a few positions."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Float[Tensor, "n D"],
        weight: Float[Tensor, "V D"],
        bias: Float[Tensor, "V"],
        codebook: Float[Tensor, "V d"],
        keys: Int[Tensor, "n"],
        skip: Int[Tensor, "n"],
        temperature: float,
        hard: bool,
    ) -> tuple[Tensor, ...]:
        count, vocab_size = len(features), len(weight)
        scores = features.new_empty(count, vocab_size)
        sample, codes = codebook.new_empty(count, vocab_size), codebook.new_empty(count, codebook.shape[1])
        best, ids = features.new_empty(count), torch.empty_like(keys)
        kl, mean = features.new_zeros(()), features.new_zeros(vocab_size)
        for part in _parts(scores):
            torch.addmm(bias, features[part], weight.t(), out=scores[part])
            noise = gumbel_noise(keys[part], vocab_size, skip=skip[part])
            sample[part] = gumbel_softmax(scores[part], noise, temperature)
            torch.mm(_looked_up(sample[part], hard), codebook, out=codes[part])
            kl += kl_to_uniform(scores[part]).sum()
            mean += scores[part].softmax(-1).sum(0)
            torch.max(scores[part], dim=-1, out=(best[part], ids[part]))
        ctx.save_for_backward(features, weight, codebook, scores, sample)
        ctx.temperature, ctx.hard = temperature, hard
        ctx.mark_non_differentiable(best, ids)
        return codes, kl / count, mean / count, best, ids

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, codebook, scores, sample = ctx.saved_tensors
        narrow, d_kl, d_mean = codebook.dtype, *grads[1:3]
        d_codes, rows, towards = grads[0].to(narrow), features.to(narrow), weight.to(narrow)
        d_features, d_bias = torch.empty_like(features), torch.zeros_like(d_mean)
        d_weight, d_codebook = torch.zeros_like(weight), torch.zeros_like(codebook, dtype=weight.dtype)
        for part in _parts(scores):
            d_codebook += _looked_up(sample[part], ctx.hard).t() @ d_codes[part]
            y = sample[part].to(scores.dtype)
            y = y / y.sum(-1, keepdim=True)  # it was rounded, so its sum is not exactly 1
            q = scores[part].softmax(-1)
            d_y = (d_codes[part] @ codebook.t()).to(scores.dtype)
            # The gradient of Σ q ln q is ln q + 1. Constants cancel in a softmax, so logits can take the place of ln q.
            d_q = torch.addcmul(d_mean, scores[part], d_kl)
            d_scores = _through_softmax(y, d_y).mul_(1 / ctx.temperature)
            d_scores.add_(_through_softmax(q, d_q), alpha=1 / len(features))
            d_bias += d_scores.sum(0)
            d_scores = d_scores.to(narrow)
            d_features[part] = d_scores @ towards
            d_weight += d_scores.t() @ rows[part]
        return d_features, d_weight, d_bias, d_codebook.to(narrow), None, None, None, None


def _through_softmax(p: Float[Tensor, "n V"], grad: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """The gradient of a softmax's input from that of its output p; `grad` is overwritten."""
    return grad.sub_((p * grad).sum(-1, keepdim=True)).mul_(p)


def _looked_up(sample: Float[Tensor, "n V"], hard: bool) -> Float[Tensor, "n V"]:
    """The weights of the codes in the sum: the sample, or one-hot with `hard`."""
    if not hard:
        return sample
    return torch.zeros_like(sample).scatter_(-1, sample.argmax(-1, keepdim=True), 1.0)


def _parts(scores: Float[Tensor, "n V"]) -> list[slice]:
    """Ranges of positions that are processed together."""
    vocab_size = scores.shape[1]
    size = positions_per_chunk(vocab_size, scores.device, on_cpu=max(1, _NUMBERS // vocab_size))
    return [slice(start, start + size) for start in range(0, len(scores), size)]
