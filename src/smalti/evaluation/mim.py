"""The masked-image-modeling loss on held-out images under fixed masks, and the baseline it has to beat."""

from collections.abc import Callable

import torch
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.functional.metrics import entropy
from smalti.training.objectives import MaskedImageModeling


@torch.no_grad()
def evaluate_mim(
    objective: MaskedImageModeling, batches: Callable[[int], Batch], num_batches: int, compute: Compute
) -> dict[str, float]:
    """Loss and accuracy over `num_batches` batches, and the unigram entropy of the masked tokens themselves.

    Returns:
        `loss_nats` and `unigram_entropy_nats` a masked patch, `accuracy` in [0, 1].
    """
    objective.eval()
    loss, weight, hits = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    counts = torch.zeros(objective.model.head.out_features, dtype=torch.float64)
    for number in range(num_batches):
        batch = batches(number).to(compute.device)
        with compute.autocast():
            output = objective(batch, torch.tensor(0))
        loss += output.loss_sum.cpu().double()
        weight += output.weight.cpu().double()
        hits += output.metrics["accuracy"][0].cpu().double()
        counts += _masked_counts(batch, len(counts))
    return {
        "loss_nats": float(loss / weight),
        "unigram_entropy_nats": float(entropy(counts)),
        "accuracy": float(hits / weight),
    }


def _masked_counts(batch: Batch, vocab_size: int) -> Tensor:
    assert batch.ids is not None
    assert batch.mask_index is not None
    assert batch.mask_weight is not None
    target = batch.ids.gather(1, batch.mask_index)[batch.mask_weight > 0]
    return torch.bincount(target.cpu(), minlength=vocab_size)
