"""Masked images filled in by a pretrained network: by its best guess, by draws from its predictions, or with pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Tokenizer
from smalti.core.rng import Stream, fold, uniform
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.tokens import chunk_for, tokenized
from smalti.functional.masking import mask_index
from smalti.functional.patches import patchify, unpatchify
from smalti.models.mim import MaskedImageModel
from smalti.models.vit import as_unit_range
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.training.masked_batches import MaskedViews
from smalti.training.targets import Pixels, SoftTokens, Tokens


@dataclass(frozen=True)
class Inpainter:
    """A pretrained network, with what its predictions need.

    Attributes:
        tokenizer: None where pixels are predicted.
    """

    model: MaskedImageModel
    tokenizer: ImageTokenizer | None
    target: Tokens | SoftTokens | Pixels
    views: MaskedViews
    compute: Compute

    def batch(self, images: UInt8[Tensor, "B C s s"], mask: Bool[np.ndarray, "N"] | None = None) -> Batch:
        """Squares as held-out images are seen, on the device, with their visual tokens if there are any.

        Args:
            mask: of every image, True where a patch is masked; None: one for each, drawn as in training.
        """
        count = len(images)
        batch = self.views.held_out_batch(InMemoryDataset(images, torch.full((count,), -1)), np.arange(count))
        if mask is not None:
            masks = np.repeat(mask[None], count, axis=0)
            index, weight = map(torch.from_numpy, mask_index(masks, int(mask.sum())))
            batch = replace(batch, mask=torch.from_numpy(masks), mask_index=index, mask_weight=weight)
        if self.tokenizer is None:
            return batch.to(self.compute.device)
        return tokenized(batch, self.tokenizer, self.views.tokenizing(self.compute), chunk_for(count))

    @torch.no_grad()
    def log_probabilities(self, batch: Batch) -> Float[Tensor, "B K V"]:
        """Of every visual token at the masked patches of a batch, in nats; on the CPU."""
        mask, index, _ = batch.masks
        with self.compute.autocast():
            logits = self.model(batch.image, mask, index)
        return logits.float().cpu().log_softmax(-1)


def entropy(log_p: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """Of predictions, in nats: from 0 where one token is certain to ln V where all are as likely."""
    return -(log_p.exp() * log_p).sum(-1)


def sample_tokens(
    log_p: Float[Tensor, "K V"], masked: Sequence[int], temperature: float, seed: int, number: int
) -> Int[Tensor, "K"]:
    """A visual token for each masked patch, drawn by its probability: a function of seed, sample and patch alone.

    Args:
        log_p: the prediction, in nats.
        masked: the positions of these patches.
        temperature: below 1 draws are closer to the best guess.
    """
    if not masked:
        return torch.zeros(0, dtype=torch.int64)
    below = (log_p.double() / temperature).softmax(-1).cumsum(-1)
    draw = torch.from_numpy(uniform(fold(seed, number, np.array(masked), Stream.NOISE), 1))
    return torch.searchsorted(below, draw * below[:, -1:], right=True)[:, 0].clamp_max(log_p.shape[-1] - 1)


class Inpainting(NamedTuple):
    """Images in [0, 1], B C H W each.

    Attributes:
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
    ids, (mask, index, _) = batch.tokens, batch.masks
    with compute.autocast():
        if guesses is None:
            guesses = model(batch.image, mask, index).argmax(-1)
        predicted_ids = torch.where(mask, ids.scatter(1, index, guesses), ids)
        grid = (-1, *model.backbone.config.grid)
        own, predicted = (tokenizer.decode(codes.view(grid)).float().cpu() for codes in (ids, predicted_ids))
    original = as_unit_range(batch.image).cpu()
    return Inpainting(original, mask.cpu(), own, predicted, ids.cpu(), predicted_ids.cpu())


@torch.no_grad()
def paint(model: MaskedImageModel, target: Pixels, batch: Batch, compute: Compute) -> Float[Tensor, "B C H W"]:
    """The images of a batch that has a mask, with masked patches replaced by predicted pixels, in [0, 1].

    Where targets are normalised, each masked patch has its true mean and standard deviation.
    """
    mask, index, _ = batch.masks
    with compute.autocast():
        predicted = model(batch.image, mask, index).float()
    config = model.backbone.config
    patches = patchify(as_unit_range(batch.image), config.patch_size)
    places = index[..., None].expand(-1, -1, patches.shape[-1])
    painted = patches.scatter(1, places, target.painted(predicted, batch))
    painted = torch.where(mask[..., None], painted, patches)
    return unpatchify(painted, config.patch_size, config.grid).cpu()
