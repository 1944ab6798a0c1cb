"""Both stages together as a model of images: a bound on the likelihood of an image, given what a mask leaves of it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Tokenizer
from smalti.data.tokens.tokens import token_view
from smalti.evaluation.likelihood import (
    BITS_OF_8_BIT_PIXELS,
    Distortion,
    Posterior,
    Quantiser,
    bits_per_dim,
    distortion,
)
from smalti.functional.metrics import unigram_nats

PRIORS = {
    "uniform": "uniform: stage one alone",
    "unigram": "unigram: how frequent each token is",
    "untrained": "masked image model, untrained",
    "trained": "masked image model, trained",
}
"""Whoever names the tokens, and what to call it."""


@dataclass(frozen=True)
class TwoStageBound:
    """-ln p(x|x̃) ≤ D + R on held-out images x under fixed masks that leave x̃: means over images, in nats an image.

    D = -ln p(x|ẑ) is the distortion and R = -ln p(ẑ|x̃) the rate of ẑ, the most likely tokens of x; q is taken as the
    one-point distribution at ẑ, so the KL of the paper's equation is R. D is a density's and may be negative: see
    `likelihood.Bound`, also for the bits that name an 8-bit pixel. Where a scale is finer than a grey level they are
    too few, so the same is given for the probabilities of grey levels. x is the image as the tokenizer sees it.

    Four priors name ẑ. The masked image model predicts masked tokens only; with it, visible ones cost what they cost
    under the unigram prior: x̃ does not determine them, for the tokenizer has seen masked pixels around them.

    Attributes:
        distortion, grey_levels: D of the density and of 8-bit grey levels; None where the tokenizer has no density.
        uniform: R = N·ln V.
        unigram: R under the frequency of each token among images that are not measured, one added to every count.
        untrained, trained: R with the masked image model, before its first step and after its last.
        patches, masked_patches: N, and the mean number of masked ones.
        sub_pixels: C·H·W of the tokenizer's view.
        images: pairs of an image and a mask that were measured.

    Reference: BEiT §2.4, eq. 2.
    """

    distortion: float | None
    grey_levels: float | None
    uniform: float
    unigram: float
    untrained: float
    trained: float
    patches: int
    masked_patches: float
    sub_pixels: int
    images: int

    def as_dict(self) -> dict[str, int | float | None]:
        """The numbers under the names that results and `--json` use.

        Returns:
            `images`, `patches`, `masked_patches`, `sub_pixels`; `distortion` and, of each of the four priors, its
            `_rate` and its `_bound` = distortion + rate: in nats a patch (`_nats_per_patch`), and as bits a sub-pixel
            of an 8-bit image by the density (`_bits_per_dim`) and, where pixels have a part, by the probability of
            grey levels (`_grey_level_bits_per_dim`). Distortion and bounds are None where there is no density.
        """
        found: dict[str, int | float | None] = {
            "images": self.images,
            "patches": self.patches,
            "masked_patches": self.masked_patches,
            "sub_pixels": self.sub_pixels,
            **self._with_pixels("distortion", 0.0),
        }
        for name in PRIORS:
            rate: float = getattr(self, name)
            found[f"{name}_rate_nats_per_patch"] = rate / self.patches
            found[f"{name}_rate_bits_per_dim"] = bits_per_dim(rate, self.sub_pixels)
            found |= self._with_pixels(f"{name}_bound", rate)
        return found

    def _with_pixels(self, name: str, rate: float) -> dict[str, float | None]:
        """The distortion and this rate."""
        density = None if self.distortion is None else self.distortion + rate
        levels = None if self.grey_levels is None else self.grey_levels + rate
        bits, exact = (None if nats is None else bits_per_dim(nats, self.sub_pixels) for nats in (density, levels))
        return {
            f"{name}_nats_per_patch": None if density is None else density / self.patches,
            f"{name}_bits_per_dim": None if bits is None else bits + BITS_OF_8_BIT_PIXELS,
            f"{name}_grey_level_bits_per_dim": exact,
        }


@torch.no_grad()
def two_stage_bound(
    tokenizer: Tokenizer,
    batches: Callable[[int], Batch],
    num_batches: int,
    counts: Int[Tensor, "V"],
    losses: tuple[float, float],
    compute: Compute,
    *,
    density: bool = True,
) -> TwoStageBound:
    """Measure `num_batches` batches with ids and masks.

    Args:
        counts: how often each token occurs among other images: the unigram prior.
        losses: of the masked image model on these batches (`evaluate_mim`), in nats a masked patch: untrained, trained.
        density: whether p(x|z) was trained as a density; False where errors of pixels were minimised.
    """
    prices = unigram_nats(counts)
    seen: list[Distortion] = []
    everywhere, visible, images, masked = 0.0, 0.0, 0, 0
    for number in range(num_batches):
        batch = batches(number)
        assert batch.ids is not None
        assert batch.mask is not None
        ids, mask, view = batch.ids.cpu(), batch.mask.cpu(), token_view(batch)
        everywhere += float(prices[ids].sum())
        visible += float(prices[ids[~mask]].sum())
        images, masked = images + len(ids), masked + int(mask.sum())
        if density and isinstance(tokenizer, Posterior | Quantiser):
            seen.append(distortion(tokenizer, view, ids, compute))
    untrained, trained = ((visible + loss * masked) / images for loss in losses)
    return TwoStageBound(
        distortion=_mean([part.density for part in seen]),
        grey_levels=_mean([part.grey_levels for part in seen]),
        uniform=ids.shape[1] * math.log(len(counts)),
        unigram=everywhere / images,
        untrained=untrained,
        trained=trained,
        patches=ids.shape[1],
        masked_patches=masked / images,
        sub_pixels=view[0].numel(),
        images=images,
    )


def _mean(parts: list[Tensor]) -> float | None:
    return float(torch.cat(parts).mean()) if parts else None


def table_of(bound: Mapping[str, Any]) -> list[list[str]]:
    """`TwoStageBound.as_dict()` as rows of text under a header: for each prior how D and R make the bound.

    All in nats a patch, the bound also in bits per dimension, by the density and by the probability of grey levels.
    """
    parts = ("distortion", "{}_rate", "{}_bound")
    bits = ("{}_bound_bits_per_dim", "{}_bound_grey_level_bits_per_dim")
    keys = [*(f"{part}_nats_per_patch" for part in parts), *bits]
    rows = [[text, *(_cell(bound[key.format(name)]) for key in keys)] for name, text in PRIORS.items()]
    return [["prior of the tokens", "D", "R", "D + R", "bits/dim", "grey levels"], *rows]


def describe(bound: Mapping[str, Any]) -> str:
    """The same as plain text."""
    about = f"{bound['images']} held-out images, {bound['masked_patches']:g} of {bound['patches']} patches masked"
    lines = [f"{name:<36}" + "".join(f"{cell:>12}" for cell in cells) for name, *cells in table_of(bound)]
    return "\n".join([f"{about}; D and R in nats a patch, then D + R in bits per dimension", *lines])


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
