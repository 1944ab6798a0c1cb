"""Evaluation of fine-tuned networks: classification, and segmentation of whole images, each at its original size."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.loader import InMemoryViewSource, Sampler
from smalti.data.transforms.augment import resample
from smalti.data.transforms.views import Box, Crop, TwoViews, WholeImage
from smalti.functional.metrics import (
    average_precision,
    class_ious,
    mean_iou,
    pixel_accuracy,
    pixel_confusion,
    topk_correct,
)

_FEW = 5
CHUNK = 8
"""Images to read at a time, and windows per batch."""


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
    right = topk_correct(scores, labels, _FEW)
    return {
        "accuracy": float(right[:, 0].double().mean()),
        "top5": float(right.any(-1).double().mean()),
        "nats": float(F.cross_entropy(scores.double(), labels)),
    }


def confusion(
    predicted: Int[Tensor, "n"], labels: Int[Tensor, "n"], num_classes: int
) -> Int[Tensor, "classes classes"]:
    """Confusion matrix: the number of images of each true class (row) with each predicted class (column)."""
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def by_class(predicted: Int[Tensor, "n"], labels: Int[Tensor, "n"], num_classes: int) -> list[float | None]:
    """The accuracy of each class, in [0, 1]; None for a class without images."""
    right, count = (torch.bincount(x, minlength=num_classes).tolist() for x in (labels[predicted == labels], labels))
    return [r / n if n else None for r, n in zip(right, count, strict=True)]


def describe_classes(
    scores: Float[Tensor, "n classes"], labels: Int[Tensor, "n"], classes: tuple[str, ...], most: int
) -> dict[str, Any]:
    """`class_accuracy` by name and, with at most `most` classes, the confusion matrix as `confusion`."""
    predicted, count = scores.argmax(1), len(classes)
    named: dict[str, Any] = {"class_accuracy": dict(zip(classes, by_class(predicted, labels, count), strict=True))}
    return named | ({"confusion": confusion(predicted, labels, count).tolist()} if count <= most else {})


def average_precisions(scores: Float[Tensor, "n labels"], shown: Float[Tensor, "n labels"]) -> list[float | None]:
    """Average precision of each label, in [0, 1], over the images where it is known; None if none of them has it.

    Args:
        shown: 1 where the image has the label, 0 where not, NaN where that is not known.
    """
    found: list[float | None] = []
    for column, has in zip(scores.T, shown.T, strict=True):
        known = ~has.isnan()
        found.append(float(average_precision(column[known], has[known] > 0)) if bool((has > 0).any()) else None)
    return found


def mean_average_precision(found: list[float | None]) -> float:
    """Mean average precision over the labels that some image has, in [0, 1]."""
    known = [value for value in found if value is not None]
    return sum(known) / max(len(known), 1)


def windows(share: float, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Windows that cover an image, with neighbours that overlap by about half or more.

    Args:
        share: side of a window relative to that of the image, in (0, 1].
        height, width: of the image in pixels.

    Returns:
        Top, left, height and width of each window in pixels.
    """
    tall, wide = max(1, round(share * height)), max(1, round(share * width))
    return [(top, left, tall, wide) for top in _starts(tall, height) for left in _starts(wide, width)]


def _starts(window: int, side: int) -> list[int]:
    count = 1 + math.ceil(2 * (side - window) / window)
    return np.rint(np.linspace(0, side - window, count)).astype(int).tolist()


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Sequence[UInt8[np.ndarray, "_H _W C"]],
    size: tuple[int, int],
    window: float,
    compute: Compute,
) -> list[UInt8[Tensor, "_H _W"]]:
    """The most likely class of every pixel of images of any size; on the CPU.

    Each window is resized to `size` (height, width) and its logits are resized back; overlapping logits are added.

    Args:
        size: input size of the network.
        window: side of a window relative to that of the image, in (0, 1].
    """
    pixels = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in images]
    places = [windows(window, *image.shape[:2]) for image in images]
    views = torch.cat([_view(image, box, size) for image, boxes in zip(pixels, places, strict=True) for box in boxes])
    parts = []
    for some in views.split(CHUNK):
        with compute.autocast():
            parts.append(model(some.to(compute.device)).float().cpu())
    scores = torch.cat(parts).split([len(boxes) for boxes in places])
    return [_joined(part, boxes, image.shape[:2]) for part, boxes, image in zip(scores, places, images, strict=True)]


def _view(image: Tensor, window: tuple[int, int, int, int], size: tuple[int, int]) -> Float[Tensor, "1 C h w"]:
    height, width = image.shape[-2:]
    top, left, tall, wide = window
    box: Box = (top / height, left / width, tall / height, wide / width)
    return resample(image, Crop(np.array([box]), np.zeros(1, np.bool_)), size)


def _joined(
    scores: Float[Tensor, "n classes h w"], boxes: list[tuple[int, int, int, int]], size: tuple[int, ...]
) -> UInt8[Tensor, "H W"]:
    total = torch.zeros(scores.shape[1], *size)
    for part, (top, left, tall, wide) in zip(scores, boxes, strict=True):
        total[:, top : top + tall, left : left + wide] += F.interpolate(
            part[None], (tall, wide), mode="bilinear", align_corners=False
        )[0]
    return total.argmax(0).to(torch.uint8)


def confusion_on(
    model: nn.Module, scenes: ImageDataset, size: tuple[int, int], window: float, compute: Compute
) -> Int[Tensor, "classes classes"]:
    """Confusion matrix of pixels over all images, without void: true class (row), predicted class (column)."""
    num_classes = len(scenes.classes)
    table = torch.zeros(num_classes, num_classes, dtype=torch.long)
    for start in range(0, len(scenes), CHUNK):
        some = [scenes[index] for index in range(start, min(start + CHUNK, len(scenes)))]
        predicted = predict(model, [scene.image for scene in some], size, window, compute)
        for guess, scene in zip(predicted, some, strict=True):
            assert scene.label_map is not None
            table += pixel_confusion(guess, torch.from_numpy(scene.label_map), num_classes)
    return table


def scores_of(table: Int[Tensor, "classes classes"]) -> dict[str, float]:
    """`mean_iou` and `pixel_accuracy`, in [0, 1]."""
    return {"mean_iou": mean_iou(table), "pixel_accuracy": pixel_accuracy(table)}


def ious_by_name(table: Int[Tensor, "classes classes"], classes: tuple[str, ...]) -> dict[str, Any]:
    """`class_iou` by name; None for a class that neither occurs nor is predicted."""
    found = class_ious(table).tolist()
    return {"class_iou": {name: None if math.isnan(iou) else iou for name, iou in zip(classes, found, strict=True)}}
