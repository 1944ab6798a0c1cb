"""Inpainting: an image, its mask, its reconstruction by the tokenizer, and one with predicted tokens."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Tokenizer
from smalti.functional.patches import patchify, unpatchify
from smalti.models.mim import MaskedImageModel
from smalti.models.vit import as_unit_range
from smalti.training.targets import Pixels


class Inpainting(NamedTuple):
    """Images in [0, 1], B C H W each.

    Attributes:
        original: the images.
        mask: True where a patch is masked.
        tokenizer: the decoded visual tokens of the images, the best result that a prediction can have.
        predicted: the same, with the tokens of masked patches replaced by the most likely predicted ones.
        ids, predicted_ids: the tokens of these two, in [0, V).
    """

    original: Float[Tensor, "B C H W"]
    mask: Bool[Tensor, "B N"]
    tokenizer: Float[Tensor, "B C h w"]
    predicted: Float[Tensor, "B C h w"]
    ids: Int[Tensor, "B N"]
    predicted_ids: Int[Tensor, "B N"]


@torch.no_grad()
def inpaint(model: MaskedImageModel, tokenizer: Tokenizer, batch: Batch, compute: Compute) -> Inpainting:
    """Predict the masked visual tokens of a batch that has a mask and ids, and decode them.

    Tokens are predicted independently of each other, in one pass, so neighbours may be inconsistent.
    """
    assert batch.ids is not None
    assert batch.mask is not None
    assert batch.mask_index is not None
    with compute.autocast():
        guesses = model(batch.image, batch.mask, batch.mask_index).argmax(-1)
        predicted_ids = batch.ids.scatter(1, batch.mask_index, guesses)
        predicted_ids = torch.where(batch.mask, predicted_ids, batch.ids)
        grid = (-1, *model.backbone.config.grid)
        own, predicted = (tokenizer.decode(ids.view(grid)).float().cpu() for ids in (batch.ids, predicted_ids))
    original = as_unit_range(batch.image).cpu()
    return Inpainting(original, batch.mask.cpu(), own, predicted, batch.ids.cpu(), predicted_ids.cpu())


@torch.no_grad()
def paint(model: MaskedImageModel, target: Pixels, batch: Batch, compute: Compute) -> Float[Tensor, "B C H W"]:
    """The images of a batch that has a mask, with masked patches replaced by predicted pixels, in [0, 1].

    Where targets are normalised, each masked patch has its true mean and standard deviation.
    """
    assert batch.mask is not None
    assert batch.mask_index is not None
    with compute.autocast():
        predicted = model(batch.image, batch.mask, batch.mask_index).float()
    config = model.backbone.config
    patches = patchify(as_unit_range(batch.image), config.patch_size)
    index = batch.mask_index[..., None].expand(-1, -1, patches.shape[-1])
    painted = patches.scatter(1, index, target.painted(predicted, batch))
    painted = torch.where(batch.mask[..., None], painted, patches)
    return unpatchify(painted, config.patch_size, config.grid).cpu()
