"""Both stages together as a generative model: a bound on the likelihood of an image given its unmasked patches."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Tokenizer
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
"""The priors over visual tokens, with their names in tables."""


@dataclass(frozen=True)
class TwoStageBound:
    """-ln p(x|x̃) ≤ D + R on held-out images x under fixed masks that leave x̃: means over images, in nats per image.

    D = -ln p_ψ(x|ẑ) is the distortion and R = -ln p_θ(ẑ|x̃) the rate, where ẑ are the most likely tokens of x. q_φ is
    taken as the one-point distribution at ẑ, so the KL of the paper's equation is R. D comes from a density and may be
    negative; see `likelihood.Bound`, also for the conversion to bits of 8-bit pixels. This conversion is too optimistic
    where the scale is smaller than a grey level, so D is also given for the probabilities of grey levels. x is the
    tokenizer's view of the image.

    R is given for four priors. The masked image model predicts masked tokens only, so the rate of visible tokens is
    that of the unigram prior: x̃ does not determine them, since the tokenizer has seen masked pixels around them.

    Attributes:
        distortion, grey_levels: D by the density and by 8-bit grey levels; None where the tokenizer has no density.
        uniform: R = N·ln V.
        unigram: R under the token frequencies of other images, with add-one smoothing.
        untrained, trained: R with the masked image model, before its first step and after its last.
        patches, masked_patches: N, and the mean number of masked patches.
        sub_pixels: C·H·W of the tokenizer's view.
        images: number of measured pairs of an image and a mask.

    Reference: BEiT §2.4, eq. 2, with the one-point distribution of eq. 3 in both terms.
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
            `images`, `patches`, `masked_patches`, `sub_pixels`; `distortion` and, for each of the four priors, `_rate`
            and `_bound` = distortion + rate. Units are nats per patch (`_nats_per_patch`), bits per sub-pixel of an
            8-bit image by the density (`_bits_per_dim`) and, except for rates, by the probability of grey levels
            (`_grey_level_bits_per_dim`). Distortion and bounds are None where there is no density.
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
        """Distortion plus `rate`, in the units of `as_dict`."""
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
    """Compute the bound on batches that have ids and masks.

    Args:
        counts: occurrences of each token in other images, for the unigram prior.
        losses: of the untrained and the trained masked image model on these batches (`evaluate_mim`), in nats per
            masked patch.
        density: whether p_ψ(x|z) was trained as a density; False where errors of pixels were minimised.
    """
    prices = unigram_nats(counts)
    seen: list[Distortion] = []
    everywhere, visible, images, masked = 0.0, 0.0, 0, 0
    for number in range(num_batches):
        batch = batches(number)
        assert batch.mask is not None
        ids, mask, view = batch.tokens.cpu(), batch.mask.cpu(), batch.token_view
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
    """`TwoStageBound.as_dict()` as rows of text below a header: D, R and the bound for each prior.

    Units are nats per patch; the bound is also in bits per dimension, by the density and by grey levels.
    """
    parts = ("distortion", "{}_rate", "{}_bound")
    bits = ("{}_bound_bits_per_dim", "{}_bound_grey_level_bits_per_dim")
    keys = [*(f"{part}_nats_per_patch" for part in parts), *bits]
    rows = [[text, *(_cell(bound[key.format(name)]) for key in keys)] for name, text in PRIORS.items()]
    return [["prior of the tokens", "D", "R", "D + R", "bits/dim", "grey levels"], *rows]


def describe(bound: Mapping[str, Any]) -> str:
    """`table_of` as plain text."""
    about = f"{bound['images']} held-out images, {bound['masked_patches']:g} of {bound['patches']} patches masked"
    lines = [f"{name:<36}" + "".join(f"{cell:>12}" for cell in cells) for name, *cells in table_of(bound)]
    return "\n".join([f"{about}; D and R in nats per patch, then D + R in bits per dimension", *lines])


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
