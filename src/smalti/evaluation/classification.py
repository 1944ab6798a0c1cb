"""Metrics of a classifier: accuracy, confusion matrix, average precision."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.loader import InMemoryViewSource, Sampler
from smalti.data.transforms.views import TwoViews, WholeImage
from smalti.functional.metrics import average_precision, hits

_FEW = 5


@torch.no_grad()
def class_scores(
    model: nn.Module, images: ImageDataset, size: tuple[int, int], compute: Compute, batch_size: int = 250
) -> Float[Tensor, "n classes"]:
    """Logits of a classifier for whole images, resized to `size` (height, width); float32, on the CPU."""
    view_source, order = (
        InMemoryViewSource(images, TwoViews(WholeImage(), size)),
        Sampler(len(images), batch_size, seed=0),
    )
    parts = []
    for start in range(0, len(images), batch_size):
        index = np.arange(start, min(start + batch_size, len(images)))
        shown = view_source(order.rows(index, np.zeros_like(index))).image.to(compute.device)
        with compute.autocast():
            scores: Tensor = model(shown)
        parts.append(scores.float().cpu())
    return torch.cat(parts)


def accuracies(scores: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]) -> dict[str, float]:
    """`accuracy` and `top5` in [0, 1]; `nats`, the mean cross-entropy per image."""
    right = hits(scores, labels, _FEW)
    return {
        "accuracy": float(right[:, 0].double().mean()),
        "top5": float(right.any(-1).double().mean()),
        "nats": float(F.cross_entropy(scores.double(), labels)),
    }


def confusion(scores: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]) -> Int[Tensor, "classes classes"]:
    """Confusion matrix: the number of images of each true class (row) with each predicted class (column)."""
    num_classes = scores.shape[1]
    return torch.bincount(labels * num_classes + scores.argmax(1), minlength=num_classes**2).reshape(
        num_classes, num_classes
    )


def by_class(table: Int[Tensor, "classes classes"]) -> list[float | None]:
    """The accuracy of each class, in [0, 1]; None for a class without images."""
    right, count = table.diagonal().tolist(), table.sum(1).tolist()
    return [r / n if n else None for r, n in zip(right, count, strict=True)]


def describe_classes(table: Int[Tensor, "classes classes"], classes: tuple[str, ...], most: int) -> dict[str, Any]:
    """`class_accuracy` by name and, with at most `most` classes, the confusion matrix as `confusion`."""
    named: dict[str, Any] = {"class_accuracy": dict(zip(classes, by_class(table), strict=True))}
    return named | ({"confusion": table.tolist()} if len(classes) <= most else {})


def precisions(scores: Float[Tensor, "n labels"], shown: Float[Tensor, "n labels"]) -> list[float | None]:
    """Average precision of each label, in [0, 1]; None for a label that no image has."""
    columns = zip(scores.T.contiguous(), shown.T.bool(), strict=True)
    return [float(average_precision(column, has)) if has.any() else None for column, has in columns]


def mean_precision(found: list[float | None]) -> float:
    """Mean average precision over the labels that some image has, in [0, 1]."""
    known = [value for value in found if value is not None]
    return sum(known) / max(len(known), 1)
