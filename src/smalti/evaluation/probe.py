"""What frozen features are worth: the layer is chosen on validation images, the test images are used once."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.data.splits import by_lot
from smalti.evaluation.features import Layer
from smalti.evaluation.knn import knn_accuracy
from smalti.evaluation.linear import LinearProbe, fit_linear, fit_ridge

L2_STRENGTHS = (1e-2, 1e-3, 1e-4)
"""Strongest first: each fit begins where the one before ended."""
_SELECTION_IMAGES = 6000
_RIDGE = 0.1
FEW_LABELS = 0.01


@dataclass(frozen=True)
class Split:
    """Positions of the training images that classifiers are fitted on, and of those that choices are made on."""

    fit: Int[Tensor, "n"]
    validation: Int[Tensor, "v"]

    @staticmethod
    def of(num_images: int, validation: float, seed: int) -> "Split":
        """Put a share of the images aside, the same ones for every network that is compared."""
        order = torch.from_numpy(by_lot(num_images, seed))
        aside = max(1, round(validation * num_images))
        return Split(fit=order[aside:], validation=order[:aside])


@dataclass(frozen=True)
class ProbeResult:
    """Accuracies on the test images, in [0, 1].

    Attributes:
        linear: linear probe on the layer (and pooling, and regularisation) that was best on the validation images.
        layer, pooling: that choice.
        linear_few: the same probe fitted on 1 % of the labels, mean over five draws.
        knn: k-NN on the layer that was best for k-NN on the validation images.
        validation: validation accuracy of the quick classifier that chose, by layer and pooling.
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
    """Measure features of a frozen network.

    Every layer and pooling gets a quick classifier (least squares) and k-NN, fitted on up to 6 000 images and scored on
    the validation images. On the winner, logistic regression is fitted to all training images but the validation
    ones, once for each regularisation; the one that is best on the validation images is scored on the test images.
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
