"""Relaxed visual tokens, from features to codebook vectors: the middle of a discrete VAE, without a tensor too many.

With 8192 codes the scores of a batch are larger than all its activations together. Written with autograd, scores,
noise, sample, log-probabilities and their gradients are ten such tensors; here two are kept (scores and sample, in the
format of the codebook), and all others exist for a few images at a time, small enough for a processor's cache.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.functional.losses import kl_to_uniform
from smalti.functional.noise import gumbel_noise
from smalti.functional.quantize import gumbel_softmax

_NUMBERS = 1 << 20
"""Scores that are worked on at a time; one image at least."""


class RelaxedTokens(NamedTuple):
    """What a batch says in visual tokens while the tokenizer trains.

    Attributes:
        codes: the codebook's vectors, weighted by a relaxed sample of q.
        kl: KL(q ‖ uniform), mean over positions, in nats.
        mean_posterior: mean of q over positions.
        best, ids: the greatest score at every position, and whose it is; no gradient.
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
    """Sample tokens from q = softmax(W f + b) by Gumbel-softmax, and look them up.

    Args:
        features: what the encoder makes of every position.
        weight, bias: of the scores, which are computed in the format of `features`.
        codebook: a vector a code; products with it and gradients are computed in its format.
        key: one key an image; the noise is a function of it.
        temperature: τ > 0.
        hard: look up the most weighted code alone; gradients flow as if it were relaxed (straight-through).

    Reference: DALL-E, appendix A.2; Jang et al. 2017, eq. 2.
    """
    return RelaxedTokens(*_Relaxed.apply(features, weight, bias, codebook, key, temperature, hard))


class _Relaxed(torch.autograd.Function):
    """q and y = softmax((s + g) / τ) of the scores s = W f + b, one part of the batch after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        codebook: Tensor,
        key: Tensor,
        temperature: float,
        hard: bool,
    ) -> tuple[Tensor, ...]:
        batch, positions, _ = features.shape
        scores = features.new_empty(batch, positions, len(weight))
        sample = scores.new_empty(scores.shape, dtype=codebook.dtype)
        codes, best = codebook.new_empty(batch, positions, codebook.shape[1]), scores.new_empty(batch, positions)
        ids, kl, mean = torch.empty_like(best, dtype=torch.int64), best.new_zeros(()), scores.new_zeros(len(weight))
        for part in _parts(scores):
            torch.addmm(bias, features[part].flatten(0, 1), weight.t(), out=scores[part].flatten(0, 1))
            noise = gumbel_noise(key[part], positions * len(weight)).view_as(scores[part])
            sample[part] = gumbel_softmax(scores[part], noise, temperature)
            torch.bmm(_looked_up(sample[part], hard), codebook.expand(len(codes[part]), -1, -1), out=codes[part])
            kl += kl_to_uniform(scores[part]).sum()
            mean += scores[part].softmax(-1).sum((0, 1))
            torch.max(scores[part], dim=-1, out=(best[part], ids[part]))
        ctx.save_for_backward(features, weight, codebook, scores, sample)
        ctx.temperature, ctx.hard, ctx.count = temperature, hard, batch * positions
        ctx.mark_non_differentiable(best, ids)
        return codes, kl / ctx.count, mean / ctx.count, best, ids

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_codes, d_kl, d_mean = grads[:3]
        features, weight, codebook, scores, sample = ctx.saved_tensors
        format_ = codebook.dtype
        d_codes, rows, towards = d_codes.to(format_), features.to(format_), weight.to(format_)
        d_features, d_bias = torch.empty_like(features), scores.new_zeros(len(weight))
        d_weight, d_codebook = torch.zeros_like(weight), torch.zeros_like(codebook, dtype=torch.float32)
        for part in _parts(scores):
            seen = d_codes[part].flatten(0, 1)
            d_codebook += _looked_up(sample[part], ctx.hard).flatten(0, 1).t() @ seen
            y, q = sample[part].flatten(0, 1).to(scores.dtype), scores[part].flatten(0, 1).softmax(-1)
            d_scores = _through_softmax(y, (seen @ codebook.t()).to(y.dtype)).mul_(1 / ctx.temperature)
            # The gradient of Σ q ln q is ln q + 1; to a softmax constants are the same, so the scores stand for ln q.
            towards_q = scores[part].flatten(0, 1).mul(d_kl).add_(d_mean)
            d_scores.add_(_through_softmax(q, towards_q), alpha=1 / ctx.count)
            d_bias += d_scores.sum(0)
            narrow = d_scores.to(format_)
            d_features[part] = (narrow @ towards).view_as(features[part])
            d_weight += narrow.t() @ rows[part].flatten(0, 1)
        return d_features, d_weight, d_bias, d_codebook.to(format_), None, None, None


def _through_softmax(p: Float[Tensor, "n V"], grad: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """The gradient of what a softmax was made of, from that of its result; `grad` is used up."""
    return grad.sub_((p * grad).sum(-1, keepdim=True)).mul_(p)


def _looked_up(sample: Float[Tensor, "*B V"], hard: bool) -> Float[Tensor, "*B V"]:
    """The weights with which codes are added up."""
    if not hard:
        return sample
    return torch.zeros_like(sample).scatter_(-1, sample.argmax(-1, keepdim=True), 1.0)


def _parts(scores: Float[Tensor, "B N V"]) -> list[slice]:
    """The images that are worked on together."""
    size = max(1, _NUMBERS // scores[0].numel())
    return [slice(start, start + size) for start in range(0, len(scores), size)]
