"""Semantic segmentation: cross-entropy and intersection over union. Void pixels are ignored everywhere."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

VOID = 255
"""The value of pixels without a class in a label map."""


def pixel_nats(
    scores: Float[Tensor, "B classes H W"], label_map: Integer[Tensor, "B H W"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of the class of every pixel: -Σ ln p(class of pixel).

    Args:
        scores: logits of the classes at each pixel.
        label_map: class of each pixel, or `VOID`.

    Returns:
        The sum over pixels that are not void, in nats, and the number of those pixels.
    """
    nats = F.cross_entropy(scores.float(), label_map.long(), ignore_index=VOID, reduction="sum")
    return nats, (label_map != VOID).sum().to(nats.dtype)


def pixel_confusion(
    predicted: Integer[Tensor, "*B H W"], label_map: Integer[Tensor, "*B H W"], num_classes: int
) -> Int[Tensor, "classes classes"]:
    """Confusion matrix: the number of pixels of each true class (row) with each predicted class (column)."""
    known = label_map != VOID
    pairs = label_map[known].long() * num_classes + predicted[known].long()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_ious(table: Int[Tensor, "classes classes"]) -> Float[Tensor, "classes"]:
    """Intersection over union of each class, in [0, 1]; NaN for a class that neither occurs nor is predicted.

    Reference: Everingham et al. 2010 (PASCAL VOC), §4.2.3: TP / (TP + FN + FP).
    """
    right = table.diagonal().double()
    return right / (table.sum(0) + table.sum(1) - right)


def mean_iou(table: Int[Tensor, "classes classes"]) -> float:
    """Mean IoU over the classes that occur or are predicted, from the confusion matrix of all images together."""
    return float(class_ious(table).nanmean())


def pixel_accuracy(table: Int[Tensor, "classes classes"]) -> float:
    """The share of pixels with the right class, in [0, 1]."""
    return float(table.diagonal().sum() / table.sum())
