"""Pictures of masked images and of what a masked image model predicts in them."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8

from smalti.core.contracts import Batch
from smalti.evaluation.inpainting import Inpainter, Inpainting, inpaint, paint
from smalti.report.pictures import mask_overlay, to_pixels
from smalti.training.targets import Pixels

Columns: TypeAlias = dict[str, UInt8[np.ndarray, "n _H _W _C"]]
"""Pictures by the name of the way to see them; a row is an image."""


def completions(inpainter: Inpainter, batch: Batch, shown: Sequence[int] | None) -> tuple[Columns, str]:
    """Masked images and what the network predicts, by column heading, with a description.

    Args:
        batch: with masks, and with tokens unless pixels are predicted.
    """
    if inpainter.tokenizer is None:
        return painted_in(inpainter, batch, shown)
    seen = inpaint(inpainter.model, inpainter.tokenizer, batch, inpainter.compute)
    return completed(seen, _patch_size(inpainter), shown)


def painted_in(inpainter: Inpainter, batch: Batch, shown: Sequence[int] | None) -> tuple[Columns, str]:
    """The pictures of a network that predicts pixels, by column heading, with a description."""
    assert isinstance(inpainter.target, Pixels)
    original = to_pixels(batch.image, shown)
    masked = mask_overlay(original, batch.masks[0].cpu().numpy(), _patch_size(inpainter))
    predicted = to_pixels(paint(inpainter.model, inpainter.target, batch, inpainter.compute), shown)
    true = " Brightness and contrast of each masked patch are not predicted but the true ones."
    return {"original": original, "masked": masked, "predicted": predicted}, (
        "Masked patches are predicted as pixels." + (true if inpainter.target.normalise else "")
    )


def completed(seen: Inpainting, patch_size: int, shown: Sequence[int] | None = None) -> tuple[Columns, str]:
    """The pictures of a completion by column heading, with a description."""
    original = to_pixels(seen.original, shown)
    columns = {
        "original": original,
        "masked": mask_overlay(original, seen.mask.numpy(), patch_size),
        "tokenizer": to_pixels(seen.tokenizer, shown),
        "predicted": to_pixels(seen.predicted, shown),
    }
    return columns, (
        "The tokenizer's view is the best that any prediction can give; the prediction has the most likely"
        " tokens in masked patches, decoded together with the others."
    )


def _patch_size(inpainter: Inpainter) -> int:
    return inpainter.views.backbone.patch_size
