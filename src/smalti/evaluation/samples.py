"""What there is to see of trained networks: typical patches of each visual token, and masked images filled in."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Tokenizer
from smalti.evaluation.token_sample import constant, token_sample
from smalti.functional.patches import patchify, unpatchify
from smalti.models.mim import MaskedImageModel
from smalti.models.vit import as_unit_range
from smalti.training.targets import Pixels

_AROUND = 5
"""A prototype is the centre of a square of so many equal tokens on a side, away from the border."""


class Code(NamedTuple):
    """One visual token, with images in [0, 1].

    Attributes:
        number: the token, in [0, V).
        share: its share of the positions whose patch has more than one colour, in [0, 1].
        prototype: its decoded patch, amid equal tokens.
        examples: held-out patches with this token, those nearest to the mean of all such patches first.
    """

    number: int
    share: float
    prototype: Float[Tensor, "C s s"]
    examples: Float[Tensor, "_ C s s"]


class Survey(NamedTuple):
    """The most frequent codes, and the count of each of the V codes on patches with more than one colour."""

    codes: list[Code]
    counts: Int[Tensor, "V"]


@torch.no_grad()
def survey(tokenizer: Tokenizer, images: Tensor, compute: Compute, most: int = 128, examples: int = 4) -> Survey:
    """Survey the codes that occur in held-out images.

    Args:
        tokenizer: whose codebook it is.
        images: B C H W, uint8 or float in [0, 1].
        compute: device and number format.
        most: the number of codes to describe, the most frequent ones.
        examples: the most patches per code.
    """
    seen, stride = token_sample(images, tokenizer.stride), tokenizer.stride
    keep = ~constant(seen, stride)
    with compute.autocast():
        ids = torch.cat([tokenizer.encode(part.to(compute.device)).flatten(1).cpu() for part in seen.split(100)])[keep]
    patches = patchify(seen, stride)[keep]
    counts = torch.bincount(ids, minlength=tokenizer.vocab_size)
    order = counts.argsort(descending=True, stable=True)[:most]
    frequent = order[counts[order] > 0]
    shape = (-1, seen.shape[1], stride, stride)
    places = dict(zip(ids.unique().tolist(), ids.argsort(stable=True).split(counts[counts > 0].tolist()), strict=True))
    typical = [_typical(as_unit_range(patches[places[number]]), examples).view(shape) for number in frequent.tolist()]
    painted = prototypes(tokenizer, frequent, compute)
    shares = (counts[frequent] / max(len(ids), 1)).tolist()
    return Survey([Code(*fields) for fields in zip(frequent.tolist(), shares, painted, typical, strict=True)], counts)


def _typical(patches: Float[Tensor, "n P"], count: int) -> Float[Tensor, "_ P"]:
    """The patches that are nearest to their mean."""
    distance = (patches - patches.mean(0)).square().sum(1)
    return patches[distance.argsort(stable=True)[:count]]


@torch.no_grad()
def prototypes(tokenizer: Tokenizer, numbers: Int[Tensor, "k"], compute: Compute) -> list[Float[Tensor, "C s s"]]:
    """The decoded patch of each of these visual tokens, amid equal tokens, in [0, 1]."""
    inside = slice(_AROUND // 2 * tokenizer.stride, (_AROUND // 2 + 1) * tokenizer.stride)
    painted: list[Tensor] = []
    for part in numbers.to(compute.device).split(32):
        with compute.autocast():
            pictures = tokenizer.decode(part[:, None, None].expand(-1, _AROUND, _AROUND).contiguous())
        painted += pictures[..., inside, inside].float().cpu()
    return painted


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
def inpaint(
    model: MaskedImageModel,
    tokenizer: Tokenizer,
    batch: Batch,
    compute: Compute,
    guesses: Int[Tensor, "B K"] | None = None,
) -> Inpainting:
    """Predict the masked visual tokens of a batch that has a mask and ids, and decode them.

    Tokens are predicted independently of each other, in one pass, so neighbours may be inconsistent.

    Args:
        guesses: the tokens at `mask_index`, where they have been predicted already; None: the most likely ones.
    """
    assert batch.ids is not None
    assert batch.mask is not None
    assert batch.mask_index is not None
    with compute.autocast():
        if guesses is None:
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
