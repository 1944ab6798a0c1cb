"""Pictures of masked images and of what a masked image model predicts in them."""

from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8

from smalti.core.compute import Compute
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.tokens import tokenized
from smalti.evaluation.samples import Inpainting, inpaint, paint
from smalti.models.mim import MaskedImageModel
from smalti.report.pictures import mask_overlay, to_pixels
from smalti.training.masked_batches import MaskedViews
from smalti.training.targets import Pixels, SoftTokens, Tokens

Columns: TypeAlias = dict[str, UInt8[np.ndarray, "n _H _W _C"]]
"""Pictures by the name of the way to see them; a row is an image."""


def completions(
    model: MaskedImageModel,
    target: Tokens | SoftTokens | Pixels,
    views: MaskedViews,
    held_out: InMemoryDataset,
    count: int,
    compute: Compute,
) -> Columns:
    """The first `count` images, masked as the run masks them, and what the model predicts.

    Args:
        views: of the run; with its tokenizer, unless pixels are predicted.
    """
    tokenizer, patch_size = views.tokenizer, model.backbone.config.patch_size
    batch = views.held_out_batch(held_out, np.arange(min(count, len(held_out))))
    if tokenizer is not None:
        batch = tokenized(batch, tokenizer, views.tokenizing(compute))
        return completed(inpaint(model, tokenizer, batch, compute), patch_size)
    assert isinstance(target, Pixels)
    assert batch.mask is not None
    original = to_pixels(batch.image)
    masked = mask_overlay(original, batch.mask.numpy(), patch_size)
    predicted = to_pixels(paint(model, target, batch.to(compute.device), compute))
    return {"original": original, "masked": masked, "predicted": predicted}


def completed(seen: Inpainting, patch_size: int) -> Columns:
    """The pictures of a completion, by column heading."""
    original = to_pixels(seen.original)
    return {
        "original": original,
        "masked": mask_overlay(original, seen.mask.numpy(), patch_size),
        "tokenizer": to_pixels(seen.tokenizer),
        "predicted": to_pixels(seen.predicted),
    }
