"""What pretraining has come to: the loss on held-out images, what it has to beat, and the bound of both stages.

What it has to beat are baselines without a network on the same masked patches; masks are fixed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, StepOutput
from smalti.data.datasets.dataset import ImageDataset, InMemoryDataset
from smalti.data.load import RunImages
from smalti.data.tokens import TokenizedOnce, encode
from smalti.evaluation.bound import TwoStageBound, describe, two_stage_bound
from smalti.evaluation.token_sample import some_images
from smalti.functional.metrics import copy_baseline, entropy, nearest_visible
from smalti.models.mim import build_mim
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.training.masked_batches import MaskedViews
from smalti.training.objectives import MaskedImageModeling
from smalti.training.targets import Pixels, SoftTokens, masked_tokens

_HELD_OUT_IMAGES = 5000
"""Held-out images the loss is measured on, at most."""


@dataclass(frozen=True)
class TokenLoss:
    """How well masked tokens are predicted, beside two baselines that are fitted to these same tokens.

    Attributes:
        loss_nats: per masked patch, with hard tokens as targets.
        unigram_entropy_nats: the loss of predicting the token frequencies.
        neighbour_nats, neighbour_accuracy: of `copy_baseline`.
        accuracy, top5_accuracy: in [0, 1].
        soft_loss_nats, kl_nats: with soft targets, the cross-entropy with the posterior, and without its own entropy.
    """

    loss_nats: float
    unigram_entropy_nats: float
    neighbour_nats: float
    accuracy: float
    top5_accuracy: float
    neighbour_accuracy: float
    soft_loss_nats: float | None = None
    kl_nats: float | None = None

    @property
    def bits_saved_per_token(self) -> float:
        """By how many bits the loss is lower than the unigram entropy."""
        return (self.unigram_entropy_nats - self.loss_nats) / math.log(2)

    @property
    def bits_saved_over_neighbour(self) -> float:
        """By how many bits the loss is lower than that of the copy baseline."""
        return (self.neighbour_nats - self.loss_nats) / math.log(2)

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name, and the bits saved; those of soft targets where there are any."""
        saved = {name: getattr(self, name) for name in ("bits_saved_per_token", "bits_saved_over_neighbour")}
        return {name: value for name, value in asdict(self).items() if value is not None} | saved

    def describe(self) -> str:
        """One line: whether the loss is worth anything."""
        soft = f", {self.kl_nats:.3f} above the posterior's own entropy" if self.kl_nats is not None else ""
        return (
            f"held-out images: loss {self.loss_nats:.3f} nats per masked token{soft}; unigram entropy"
            f" {self.unigram_entropy_nats:.3f}, copying the nearest visible token {self.neighbour_nats:.3f}; bits saved"
            f" a token {self.bits_saved_per_token:.3f} and {self.bits_saved_over_neighbour:.3f}; top-1"
            f" {self.accuracy:.1%} (copying {self.neighbour_accuracy:.1%}), top-5 {self.top5_accuracy:.1%}"
        )


@dataclass(frozen=True)
class PixelLoss:
    """How well masked pixels are predicted, in the units of the target.

    Attributes:
        flat_pixel_loss: of predicting a single colour (the mean of each masked patch where targets are normalised, else
            mid-grey).
        neighbour_pixel_loss: of copying the nearest visible patch.
    """

    pixel_loss: float
    flat_pixel_loss: float
    neighbour_pixel_loss: float

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)

    def describe(self) -> str:
        """One line: whether the loss is worth anything."""
        return (
            f"held-out images: loss {self.pixel_loss:.4f} per masked patch; patches of one colour cost"
            f" {self.flat_pixel_loss:.4f}, copies of the nearest visible patch {self.neighbour_pixel_loss:.4f}"
        )


@dataclass(frozen=True)
class PretrainingResult:
    """What pretraining has come to on held-out images; the bound of both stages where tokens are predicted."""

    loss: TokenLoss | PixelLoss
    bound: TwoStageBound | None = None

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name; those of the bound under `bound`."""
        return self.loss.as_dict() | ({} if self.bound is None else {"bound": self.bound.as_dict()})

    def describe(self) -> str:
        """The loss in a line, and the table of the bound."""
        lines = [self.loss.describe(), *([] if self.bound is None else [describe(self.bound.as_dict())])]
        return "\n".join(lines)


def evaluate_mim(
    objective: MaskedImageModeling, batches: Callable[[int], Batch], num_batches: int, compute: Compute
) -> TokenLoss:
    """Loss and accuracy over `num_batches` batches, and two baselines on the same masked tokens.

    Both baselines are fitted to these same tokens, so each has the lowest loss of its kind.
    """
    means, hits = MeanMetrics(), torch.zeros(objective.model.head.out_features, dtype=torch.float64)
    misses = hits.clone()
    for batch, output in _outputs(objective, batches, num_batches, compute):
        means.add(output)
        right, wrong = _copied(batch, objective.model.backbone.config.grid)
        hits += torch.bincount(right, minlength=len(hits))
        misses += torch.bincount(wrong, minlength=len(misses))
    unigram, neighbour = float(entropy(hits + misses)), copy_baseline(hits, misses)
    soft = "hard" in means
    return TokenLoss(
        loss_nats=means["hard" if soft else "loss"],
        unigram_entropy_nats=unigram,
        neighbour_nats=neighbour.nats,
        accuracy=means["accuracy"],
        top5_accuracy=means["top5"],
        neighbour_accuracy=neighbour.accuracy,
        soft_loss_nats=means["loss"] if soft else None,
        kl_nats=means["kl"] if soft else None,
    )


def evaluate_pixels(
    objective: MaskedImageModeling, batches: Callable[[int], Batch], num_batches: int, compute: Compute
) -> PixelLoss:
    """Loss and two baselines over `num_batches` batches, for an objective whose target is pixels."""
    target = objective.target
    assert isinstance(target, Pixels)
    means, flat, copied = MeanMetrics(), MeanMetrics(), MeanMetrics()
    for batch, output in _outputs(objective, batches, num_batches, compute):
        mask, index, weight = batch.masks
        neighbour = nearest_visible(mask, index, objective.model.backbone.config.grid)
        copies = target.patches(batch, neighbour)
        means.add(output)
        copied.add(target(copies, batch, weight))
        flat.add(target(torch.full_like(copies, 0.0 if target.normalise else 0.5), batch, weight))
    return PixelLoss(means["loss"], flat["loss"], copied["loss"])


class MeanMetrics(dict[str, float]):
    """Mean loss and metrics over several batches: sums divided by summed counts."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, output: StepOutput) -> None:
        """Add the output of a batch."""
        for name, (total, count) in {"loss": (output.loss_sum, output.weight), **output.metrics}.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = before[0] + float(total), before[1] + float(count)
            self[name] = self._sums[name][0] / self._sums[name][1]


def _outputs(
    objective: MaskedImageModeling, batches: Callable[[int], Batch], num_batches: int, compute: Compute
) -> Iterator[tuple[Batch, StepOutput]]:
    objective.eval()
    for number in range(num_batches):
        batch = batches(number).to(compute.device)
        with torch.no_grad(), compute.autocast():
            output = objective(batch, torch.tensor(0))
        yield batch, output


def _copied(batch: Batch, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The masked tokens that are equal to the token of the nearest visible patch, and the others."""
    mask, index, weight = batch.masks
    tokens, masked = masked_tokens(batch), weight > 0
    same = tokens == batch.tokens.gather(1, nearest_visible(mask, index, grid))
    return tokens[masked & same].cpu(), tokens[masked & ~same].cpu()


def measure(
    objective: MaskedImageModeling,
    views: MaskedViews,
    images: RunImages,
    batch_size: int,
    compute: Compute,
    *,
    density: bool,
) -> PretrainingResult:
    """The loss and what it has to beat, on whole held-out images under fixed masks; of tokens also the bound of both
    stages. Every masked patch counts the same.

    Args:
        density: whether p(x|z) of the tokenizer is a density.
    """
    loader = views.held_out_loader(images.held_out, batch_size)
    num_batches = max(1, min(len(images.held_out), _HELD_OUT_IMAGES) // batch_size)
    tokenizer = views.tokenizer
    if tokenizer is None:
        return PretrainingResult(evaluate_pixels(objective, loader, num_batches, compute))
    tokenizing, posterior = views.tokenizing(compute), isinstance(objective.target, SoftTokens)
    batches = TokenizedOnce(loader, tokenizer, tokenizing, posterior=posterior)
    measured = evaluate_mim(objective, batches, num_batches, compute)
    model = build_mim(views.backbone, views.num_outputs, views.seed, objective.model.decoder_config)
    before = evaluate_mim(MaskedImageModeling(model.to(compute.device)), batches, num_batches, compute)
    seen = token_views(views, images.train, side=images.held_out.images.shape[-1])
    counts = token_counts(seen, tokenizer, tokenizing)
    losses = (before.loss_nats, measured.loss_nats)
    bound = two_stage_bound(tokenizer, batches, num_batches, counts, losses, compute, density=density)
    return PretrainingResult(measured, bound)


def token_views(views: MaskedViews, images: ImageDataset, side: int) -> Tensor:
    """Some images as the tokenizer sees held-out ones: whole.

    Args:
        side: streamed images are scaled to squares of so many pixels first, as held-out ones are.
    """
    some = some_images(images, side)
    squares = InMemoryDataset(some, torch.zeros(len(some), dtype=torch.int64))
    parts = [np.arange(len(some))[start : start + 500] for start in range(0, len(some), 500)]
    return torch.cat([views.held_out_batch(squares, part).token_view for part in parts])


def token_counts(views: Tensor, tokenizer: ImageTokenizer, compute: Compute) -> Int[Tensor, "V"]:
    """How often each token occurs in some `token_views`."""
    ids = encode(views, tokenizer, compute).cpu()
    return torch.bincount(ids.flatten(), minlength=tokenizer.vocab_size)
