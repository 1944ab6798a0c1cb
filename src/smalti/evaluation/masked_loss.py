"""The masked-image-modeling loss on held-out images under fixed masks, and baselines without a network."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, StepOutput
from smalti.functional.metrics import copying, entropy, nearest_visible
from smalti.training.objectives import MaskedImageModeling
from smalti.training.targets import Pixels, masked_tokens


def evaluate_mim(
    objective: MaskedImageModeling, batches: Callable[[int], Batch], num_batches: int, compute: Compute
) -> dict[str, float]:
    """Loss and accuracy over `num_batches` batches, and two baselines on the same masked tokens.

    Both baselines are fitted to these same tokens, so each has the lowest loss of its kind.

    Returns:
        `loss_nats` per masked patch, with hard tokens as targets; `accuracy` and `top5_accuracy` in [0, 1];
        `unigram_entropy_nats`, the loss of predicting the token frequencies; `neighbour_nats` and `neighbour_accuracy`
        of the copy baseline (`copying`); `bits_saved_per_token` and `bits_saved_over_neighbour`, by how many bits the
        loss is lower than these; with soft targets also `soft_loss_nats` and `kl_nats`.
    """
    means, hits = Means(), torch.zeros(objective.model.head.out_features, dtype=torch.float64)
    misses = hits.clone()
    for batch, output in _outputs(objective, batches, num_batches, compute):
        means.add(output)
        right, wrong = _copied(batch, objective.model.backbone.config.grid)
        hits += torch.bincount(right, minlength=len(hits))
        misses += torch.bincount(wrong, minlength=len(misses))
    unigram, neighbour = float(entropy(hits + misses)), copying(hits, misses)
    soft = "hard" in means
    loss = means["hard" if soft else "loss"]
    measured = {
        "loss_nats": loss,
        "unigram_entropy_nats": unigram,
        "neighbour_nats": neighbour.nats,
        "bits_saved_per_token": (unigram - loss) / math.log(2),
        "bits_saved_over_neighbour": (neighbour.nats - loss) / math.log(2),
        "accuracy": means["accuracy"],
        "top5_accuracy": means["top5"],
        "neighbour_accuracy": neighbour.accuracy,
    }
    return measured | ({"soft_loss_nats": means["loss"], "kl_nats": means["kl"]} if soft else {})


def evaluate_pixels(
    objective: MaskedImageModeling, batches: Callable[[int], Batch], num_batches: int, compute: Compute
) -> dict[str, float]:
    """Loss and two baselines over `num_batches` batches, for an objective whose target is pixels.

    Returns:
        `pixel_loss` in the units of the target; `flat_pixel_loss` of predicting a single colour (the mean of each
        masked patch where targets are normalised, else mid-grey); `neighbour_pixel_loss` of copying the nearest visible
        patch.
    """
    target = objective.target
    assert isinstance(target, Pixels)
    means, flat, copied = Means(), Means(), Means()
    for batch, output in _outputs(objective, batches, num_batches, compute):
        assert batch.mask is not None
        assert batch.mask_index is not None
        assert batch.mask_weight is not None
        neighbour = nearest_visible(batch.mask, batch.mask_index, objective.model.backbone.config.grid)
        copies = target.patches(batch, neighbour)
        means.add(output)
        copied.add(target(copies, batch, batch.mask_weight))
        flat.add(target(torch.full_like(copies, 0.0 if target.normalise else 0.5), batch, batch.mask_weight))
    return {"pixel_loss": means["loss"], "flat_pixel_loss": flat["loss"], "neighbour_pixel_loss": copied["loss"]}


class Means(dict[str, float]):
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
    assert batch.ids is not None
    assert batch.mask is not None
    assert batch.mask_index is not None
    assert batch.mask_weight is not None
    tokens, masked = masked_tokens(batch), batch.mask_weight > 0
    same = tokens == batch.ids.gather(1, nearest_visible(batch.mask, batch.mask_index, grid))
    return tokens[masked & same].cpu(), tokens[masked & ~same].cpu()
