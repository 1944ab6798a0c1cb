"""What pretraining has come to: the loss on held-out images, what it has to beat, and the bound of both stages."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.memory import InMemoryDataset
from smalti.data.load import RunImages
from smalti.data.tokens.tokens import TokenizedOnce, encode, token_view
from smalti.evaluation.bound import two_stage_bound
from smalti.evaluation.masked_loss import evaluate_mim, evaluate_pixels
from smalti.evaluation.token_sample import some_images
from smalti.models.mim import build_mim
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.training.masked_batches import MaskedViews
from smalti.training.objectives import MaskedImageModeling
from smalti.training.targets import SoftTokens

_HELD_OUT_IMAGES = 5000
"""Held-out images the loss is measured on, at most."""


def measure(
    objective: MaskedImageModeling,
    views: MaskedViews,
    images: RunImages,
    batch_size: int,
    compute: Compute,
    *,
    density: bool,
) -> dict[str, Any]:
    """The loss and what it has to beat, on whole held-out images under fixed masks; of tokens also the bound of both
    stages. Every masked patch counts the same.

    Args:
        density: whether p(x|z) of the tokenizer is a density.
    """
    loader = views.held_out_loader(images.held_out, batch_size)
    num_batches = max(1, min(len(images.held_out), _HELD_OUT_IMAGES) // batch_size)
    tokenizer = views.tokenizer
    if tokenizer is None:
        return dict(evaluate_pixels(objective, loader, num_batches, compute))
    batches = TokenizedOnce(loader, tokenizer, compute, posterior=isinstance(objective.target, SoftTokens))
    measured = evaluate_mim(objective, batches, num_batches, compute)
    model = build_mim(views.backbone, views.num_outputs, views.seed, objective.model.decoder_config)
    before = evaluate_mim(MaskedImageModeling(model.to(compute.device)), batches, num_batches, compute)
    seen = token_views(views, images.train, side=images.held_out.images.shape[-1])
    counts, losses = token_counts(seen, tokenizer, compute), (before["loss_nats"], measured["loss_nats"])
    bound = two_stage_bound(tokenizer, batches, num_batches, counts, losses, compute, density=density)
    return measured | {"bound": bound.as_dict()}


def token_views(views: MaskedViews, images: ImageDataset, side: int) -> Tensor:
    """Some images as the tokenizer sees held-out ones: whole.

    Args:
        side: streamed images are scaled to squares of so many pixels first, as held-out ones are.
    """
    some = some_images(images, side)
    squares = InMemoryDataset(some, torch.zeros(len(some), dtype=torch.int64))
    parts = [np.arange(len(some))[start : start + 500] for start in range(0, len(some), 500)]
    return torch.cat([token_view(views.held_out_batch(squares, part)) for part in parts])


def token_counts(views: Tensor, tokenizer: ImageTokenizer, compute: Compute) -> Int[Tensor, "V"]:
    """How often each token occurs in some `token_views`."""
    ids = torch.cat([encode(part.to(compute.device), tokenizer, compute).cpu() for part in views.split(1024)])
    return torch.bincount(ids.flatten(), minlength=tokenizer.vocab_size)


def describe_loss(measured: Mapping[str, Any]) -> str:
    """One line: whether the loss is worth anything."""
    if "pixel_loss" in measured:
        return (
            f"held-out images: loss {measured['pixel_loss']:.4f} per masked patch; patches of one colour cost"
            f" {measured['flat_pixel_loss']:.4f}, copies of the nearest visible patch"
            f" {measured['neighbour_pixel_loss']:.4f}"
        )
    soft = f", {measured['kl_nats']:.3f} above the posterior's own entropy" if "kl_nats" in measured else ""
    return (
        f"held-out images: loss {measured['loss_nats']:.3f} nats per masked token{soft}; unigram entropy"
        f" {measured['unigram_entropy_nats']:.3f}, copying the nearest visible token"
        f" {measured['neighbour_nats']:.3f}; bits saved a token {measured['bits_saved_per_token']:.3f} and"
        f" {measured['bits_saved_over_neighbour']:.3f}; top-1 {measured['accuracy']:.1%} (copying"
        f" {measured['neighbour_accuracy']:.1%}), top-5 {measured['top5_accuracy']:.1%}"
    )
