"""Targets of masked image modeling: visual tokens, the tokenizer's posterior, or pixels."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.compute import compiled
from smalti.core.config import setting
from smalti.core.contracts import Batch, StepOutput
from smalti.functional.losses import masked_token_loss, patch_error, soft_cross_entropy
from smalti.functional.metrics import topk_correct
from smalti.functional.patches import gather_rows, normalised_patches, patchify
from smalti.models.vit import as_unit_range

_TOP = 5
"""Rank of the top-5 accuracy, which is 1 with fewer visual tokens."""


@dataclass(frozen=True)
class Tokens:
    """The most likely visual token of each masked patch, a classification (BEiT eq. 1)."""

    def __call__(
        self, predicted: Float[Tensor, "B K V"], batch: Batch, weight: Float[Tensor, "B K"], with_metrics: bool = True
    ) -> StepOutput:
        return _of_tokens(masked_token_loss, predicted, batch, weight, with_metrics)


class CompiledTokens:
    """`Tokens` with a compiled loss: the scores of a training step are read twice and not five times.

    What is measured on other images, in batches of any size, is computed as without it. Equal up to rounding.
    """

    def __init__(self) -> None:
        self._loss = compiled(masked_token_loss)

    def __call__(
        self, predicted: Float[Tensor, "B K V"], batch: Batch, weight: Float[Tensor, "B K"], with_metrics: bool = True
    ) -> StepOutput:
        loss = self._loss if predicted.requires_grad else masked_token_loss
        return _of_tokens(loss, predicted, batch, weight, with_metrics)


def _of_tokens(
    loss: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    predicted: Float[Tensor, "B K V"],
    batch: Batch,
    weight: Float[Tensor, "B K"],
    with_metrics: bool,
) -> StepOutput:
    loss_sum, total = loss(predicted, masked_tokens(batch), weight)
    return StepOutput(loss_sum, total, topk_metrics(predicted, batch) if with_metrics else {})


@dataclass(frozen=True)
class SoftTokens:
    """The tokenizer's posterior q(z|x) at each masked patch, by cross-entropy.

    Metrics in addition to those of `Tokens`: `kl`, the loss minus the entropy of q, which is its minimum; and `hard`,
    the loss of `Tokens`.

    Reference: BEiT §2.4, eq. 2.
    """

    def __call__(
        self, predicted: Float[Tensor, "B K V"], batch: Batch, weight: Float[Tensor, "B K"], with_metrics: bool = True
    ) -> StepOutput:
        assert batch.scores is not None
        nats, entropy = soft_cross_entropy(predicted, batch.scores)
        loss_sum, total = (nats * weight).sum(), weight.sum()
        if not with_metrics:
            return StepOutput(loss_sum, total, {})
        hard_sum, _ = masked_token_loss(predicted.detach(), masked_tokens(batch), weight)
        kl_sum = ((nats - entropy) * weight).sum().detach()
        metrics = {"kl": (kl_sum, total), "hard": (hard_sum, total)}
        return StepOutput(loss_sum, total, metrics | topk_metrics(predicted, batch))


@dataclass(frozen=True)
class Pixels:
    """The pixels of each masked patch, a regression without a tokenizer, for comparison.

    Reference: He et al. 2021, MAE (`mse`, normalised); Xie et al. 2021, SimMIM (`l1`).
    Differs: backbone and masks are those of BEiT.
    """

    error: Literal["mse", "l1"] = setting("mse", "squared or absolute error", "MAE: mse, SimMIM: l1")
    normalise: bool = setting(True, "each patch by its own mean and deviation; else pixels in [0, 1]", "MAE §4.1")

    def __call__(
        self, predicted: Float[Tensor, "B K P"], batch: Batch, weight: Float[Tensor, "B K"], with_metrics: bool = True
    ) -> StepOutput:
        assert batch.mask_index is not None
        error = patch_error(predicted, self.patches(batch, batch.mask_index), self.error)
        return StepOutput((error * weight).sum(), weight.sum(), {})

    def patches(self, batch: Batch, index: Int[Tensor, "B K"]) -> Float[Tensor, "B K P"]:
        """The target values of the patches at the positions `index`."""
        patches = pixels_at(batch, index)
        return normalised_patches(patches)[0] if self.normalise else patches

    def painted(self, predicted: Float[Tensor, "B K P"], batch: Batch) -> Float[Tensor, "B K P"]:
        """Predictions as pixels in [0, 1]; if targets are normalised, with the true mean and deviation of the patch."""
        assert batch.mask_index is not None
        if self.normalise:
            _, mean, scale = normalised_patches(pixels_at(batch, batch.mask_index))
            predicted = predicted * scale + mean
        return predicted.clamp(0, 1)


def masked_tokens(batch: Batch) -> Int[Tensor, "B K"]:
    """The visual tokens at `mask_index`."""
    assert batch.mask_index is not None
    return batch.tokens.gather(1, batch.mask_index)


def topk_metrics(predicted: Float[Tensor, "B K V"], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Top-1 and top-5 accuracy of the predicted visual tokens, as (sum, count)."""
    assert batch.mask_weight is not None
    right, count = topk_correct(predicted.detach(), masked_tokens(batch), _TOP), batch.mask_weight.sum()
    within = {"accuracy": right[..., 0], "top5": right.any(-1)}
    return {name: ((found * batch.mask_weight).sum(), count) for name, found in within.items()}


def pixels_at(batch: Batch, index: Int[Tensor, "B K"]) -> Float[Tensor, "B K P"]:
    """Pixels in [0, 1] of the square patches at `index`; their size follows from the number of patches in the mask."""
    assert batch.mask is not None
    height, width = batch.image.shape[-2:]
    patches = patchify(as_unit_range(batch.image), math.isqrt(height * width // batch.mask.shape[1]))
    return gather_rows(patches, index)
