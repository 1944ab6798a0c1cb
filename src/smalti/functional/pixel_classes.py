"""Classes of pixels: their loss, and how predictions overlap with the truth. Void pixels count nowhere."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

VOID = 255
"""What stands in a label map where a pixel has no class."""


def pixel_nats(
    scores: Float[Tensor, "B classes H W"], label_map: Integer[Tensor, "B H W"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of the class of every pixel: -Σ ln p(class of pixel).

    Returns:
        The sum over pixels that are not void, in nats, and how many there are.
    """
    nats = F.cross_entropy(scores.float(), label_map.long(), ignore_index=VOID, reduction="sum")
    return nats, (label_map != VOID).sum().to(nats.dtype)


def pixel_confusion(
    predicted: Integer[Tensor, "*B H W"], label_map: Integer[Tensor, "*B H W"], num_classes: int
) -> Int[Tensor, "classes classes"]:
    """How many pixels of each class (row) are taken for each class (column)."""
    known = label_map != VOID
    pairs = label_map[known].long() * num_classes + predicted[known].long()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_ious(table: Int[Tensor, "classes classes"]) -> Float[Tensor, "classes"]:
    """Intersection over union of each class, in [0, 1]; not a number for a class that is neither there nor predicted.

    Reference: Everingham et al. 2010 (PASCAL VOC), §4.2.3: right / (right + missed + taken for it).
    """
    right = table.diagonal().double()
    return right / (table.sum(0) + table.sum(1) - right)


def mean_iou(table: Int[Tensor, "classes classes"]) -> float:
    """The mean over the classes that are there or predicted, of all images together; not of images one by one."""
    return float(class_ious(table).nanmean())


def pixel_accuracy(table: Int[Tensor, "classes classes"]) -> float:
    """The share of pixels whose class is right."""
    return float(table.diagonal().sum() / table.sum())
