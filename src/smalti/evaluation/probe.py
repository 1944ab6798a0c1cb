"""A quick probe of frozen features: layers are chosen on validation images, and the test images are used once."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.data.datasets.memory import InMemoryDataset
from smalti.data.load import InMemoryData
from smalti.data.splits import by_lot
from smalti.evaluation.features import Layer, Pooling, extract
from smalti.evaluation.knn import knn_accuracy
from smalti.evaluation.linear import LinearProbe, fit_linear, fit_ridge
from smalti.models.vit import VisionTransformer, as_unit_range

L2_STRENGTHS = (1e-2, 1e-3, 1e-4)
"""Strongest first, as each fit starts from the previous solution."""
_SELECTION_IMAGES = 6000
_RIDGE = 0.1
FEW_LABELS = 0.01
_QUICK_POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "2x2")
"""What the demo chooses from."""


@dataclass(frozen=True)
class Split:
    """Positions of the training images for fitting classifiers, and of those for choices (validation)."""

    fit: Int[Tensor, "n"]
    validation: Int[Tensor, "v"]

    @staticmethod
    def of(num_images: int, validation: float, seed: int) -> "Split":
        """A split with a share of validation images, which is the same for all networks of a comparison."""
        order = torch.from_numpy(by_lot(num_images, seed))
        aside = max(1, round(validation * num_images))
        return Split(fit=order[aside:], validation=order[:aside])


@dataclass(frozen=True)
class ProbeResult:
    """Accuracies on the test images, in [0, 1].

    Attributes:
        linear: linear probe with the layer, pooling and regularisation that are best on the validation images.
        layer, pooling: of the linear probe.
        linear_few: the same probe fitted to 1 % of the labels, mean over five draws.
        knn: k-NN on the layer that is best for k-NN on the validation images.
        validation: validation accuracy of the fast classifier, by layer and pooling.
    """

    linear: float
    layer: int
    pooling: str
    linear_few: float
    knn: float
    knn_layer: int
    knn_pooling: str
    validation: Mapping[str, float]


Features = Mapping[Layer, Float[Tensor, "_ _"]]


def probe(train: Features, train_labels: Tensor, test: Features, test_labels: Tensor, split: Split) -> ProbeResult:
    """Evaluate features of a frozen network.

    For every layer and pooling, ridge regression and k-NN are fitted on up to 6 000 images and evaluated on the
    validation images. On the best layer, logistic regression is fitted to all training images without the validation
    images, once per regularisation strength; the best one on the validation images is evaluated on the test images.

    Args:
        train, test: features by layer, n x F and m x F.
        train_labels, test_labels: classes 0, 1, ...
        split: of the training images.
    """
    small = split.fit[:_SELECTION_IMAGES]
    checked = split.validation
    linear_scores = {
        layer: fit_ridge(x[small], train_labels[small], _RIDGE).accuracy(x[checked], train_labels[checked])
        for layer, x in train.items()
    }
    best = max(linear_scores, key=lambda layer: linear_scores[layer])
    knn_scores = {
        layer: knn_accuracy(x[small], train_labels[small], x[checked], train_labels[checked])
        for layer, x in train.items()
    }
    best_knn = max(knn_scores, key=lambda layer: knn_scores[layer])
    x, y = train[best], train_labels
    fit_x, fit_y = x[split.fit], y[split.fit]
    probes: list[LinearProbe] = []
    for l2 in L2_STRENGTHS:
        probes.append(fit_linear(fit_x, fit_y, l2, start=probes[-1] if probes else None))
    chosen = max(probes, key=lambda fitted: fitted.accuracy(x[checked], y[checked]))
    return ProbeResult(
        linear=chosen.accuracy(test[best], test_labels),
        layer=best[0],
        pooling=best[1],
        linear_few=_few_labels(x, y, test[best], test_labels, split),
        knn=knn_accuracy(train[best_knn][split.fit], y[split.fit], test[best_knn], test_labels),
        knn_layer=best_knn[0],
        knn_pooling=best_knn[1],
        validation={f"{number} {pooling}": score for (number, pooling), score in linear_scores.items()},
    )


def _few_labels(x: Tensor, y: Tensor, test: Tensor, test_labels: Tensor, split: Split, draws: int = 5) -> float:
    """Accuracy with 1 % of the labels, drawn evenly over the classes, mean over `draws` disjoint draws."""
    by_class = [split.fit[y[split.fit] == c] for c in y[split.fit].unique()]
    each = max(1, round(FEW_LABELS * len(split.fit) / len(by_class)))
    draws = max(1, min(draws, min(len(members) for members in by_class) // each))
    accuracies = []
    for draw in range(draws):
        few = torch.cat([members[draw * each : (draw + 1) * each] for members in by_class])
        accuracies.append(fit_linear(x[few], y[few], 1e-2).accuracy(test, test_labels))
    return sum(accuracies) / draws


def probe_backbone(
    backbone: VisionTransformer, images: InMemoryData, compute: Compute, validation: float = 0.1, seed: int = 0
) -> ProbeResult:
    """k-NN and linear probe of every layer; layer and regularisation are chosen on a part of the training images."""
    train, test = (
        extract(backbone, part, compute, poolings=_QUICK_POOLINGS) for part in (images.train, images.held_out)
    )
    split = Split.of(len(images.train), validation, seed)
    return probe(train, images.train.labels, test, images.held_out.labels, split)


def probe_pixels(images: InMemoryData, validation: float = 0.1, seed: int = 0) -> ProbeResult:
    """The same probes on raw pixels."""
    split = Split.of(len(images.train), validation, seed)
    train, test = ({(0, "pixels"): _flat(part)} for part in (images.train, images.held_out))
    return probe(train, images.train.labels, test, images.held_out.labels, split)


def _flat(images: InMemoryDataset) -> Tensor:
    return as_unit_range(images.images).flatten(1)
