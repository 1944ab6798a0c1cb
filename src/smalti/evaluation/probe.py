"""Classifiers on frozen features, k-NN and linear; a quick probe of every layer; and what stands beside a network.

The quick probe chooses layers on validation images, and uses the test images once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from smalti.core.compute import Compute
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import InMemoryData
from smalti.data.splits import hold_out, random_order
from smalti.evaluation.features import Layer, Pooling, extract, resized
from smalti.models.vit import VisionTransformer, ViT, as_unit_range

_TEMPERATURE = 0.07
_CHUNK = 1000
"""Images per batch of similarities."""
Scale: TypeAlias = tuple[Tensor, Tensor]
"""Mean and standard deviation of every feature."""
_QUICK_L2_STRENGTHS = (1e-2, 1e-3, 1e-4)
_SELECTION_IMAGES = 6000
_RIDGE = 0.1
_VALIDATION = 0.1
"""Share of the training images that choices are made on."""
FEW_LABELS = 0.01
_QUICK_POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "2x2")
"""What the demo chooses from."""
Features = Mapping[Layer, Float[Tensor, "_ _"]]
PIXELS = "raw pixels"
RANDOM_PAPER = "random, the paper's initialisation"
RANDOM_USED = "random, the initialisation used"
RANDOM_WIDTH = "random, initialised by width"
_MAX_PIXELS = 32
"""Side of the images whose pixels are features: fitting a linear probe needs memory for features²."""


def knn_accuracy(
    train: Float[Tensor, "n F"],
    train_labels: Int[Tensor, "n"],
    test: Float[Tensor, "m F"],
    test_labels: Int[Tensor, "m"],
    k: int = 20,
) -> float:
    """Accuracy of classifying test images by a vote of their `k` most similar training images, in [0, 1].

    Similarity is the cosine of standardised features; the weight of a vote is exp(similarity / 0.07).

    Reference: Wu et al. 2018 (instance discrimination), as used by DINO.
    """
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    bank, queries = (F.normalize((x - mean) / std, dim=1) for x in (train, test))
    hits = 0
    for start in range(0, len(queries), _CHUNK):
        voted = _vote(queries[start : start + _CHUNK] @ bank.t(), train_labels, k)
        hits += int((voted == test_labels[start : start + _CHUNK]).sum())
    return hits / len(test)


def leave_one_out_accuracy(features: Float[Tensor, "n F"], labels: Int[Tensor, "n"], k: int = 20) -> float:
    """k-NN accuracy where each image is classified by all others, so no separate test images are needed."""
    bank = F.normalize((features - features.mean(0)) / features.std(0).clamp_min(1e-6), dim=1)
    hits = 0
    for start in range(0, len(bank), _CHUNK):
        similarity = bank[start : start + _CHUNK] @ bank.t()
        similarity.diagonal(start).fill_(-torch.inf)
        hits += int((_vote(similarity, labels, k) == labels[start : start + _CHUNK]).sum())
    return hits / len(bank)


def _vote(similarity: Float[Tensor, "m n"], labels: Int[Tensor, "n"], k: int) -> Int[Tensor, "m"]:
    """The class with the most votes of the `k` most similar; a similarity of minus infinity gives no vote."""
    nearest_similarity, nearest = similarity.topk(min(k, len(labels)), dim=1)
    votes = F.one_hot(labels[nearest], int(labels.max()) + 1) * (nearest_similarity / _TEMPERATURE).exp()[..., None]
    return votes.sum(1).argmax(1)


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier: logits = standardised features · weight + bias."""

    mean: Float[Tensor, "F"]
    std: Float[Tensor, "F"]
    weight: Float[Tensor, "F classes"]
    bias: Float[Tensor, "classes"]

    def accuracy(self, features: Float[Tensor, "m F"], labels: Int[Tensor, "m"]) -> float:
        """Share of images classified right, in [0, 1]."""
        scores = (features - self.mean) / self.std @ self.weight + self.bias
        return float((scores.argmax(1) == labels).double().mean())


def scale_of(features: Float[Tensor, "n F"]) -> Scale:
    """Mean and standard deviation of the features; constant features become zero and not NaN."""
    return features.mean(0), features.std(0, correction=0).clamp_min(1e-6)


def fit_ridge(
    features: Float[Tensor, "n F"], labels: Int[Tensor, "n"], l2: float, *, scale: Scale | None = None
) -> LinearProbe:
    """Ridge regression on one-hot labels in closed form, a fast classifier to compare layers.

    Args:
        l2: strength of the regularisation, relative to the unit variance of standardised features.
        scale: for standardisation; None for that of `features`.
    """
    mean, std = scale or scale_of(features)
    x = (features - mean) / std
    target = F.one_hot(labels, int(labels.max()) + 1).to(x.dtype)
    bias = target.mean(0)
    if len(x) < x.shape[1]:  # the same solution by a smaller system of equations
        gram = x @ x.t() / len(x) + l2 * torch.eye(len(x), dtype=x.dtype)
        return LinearProbe(mean, std, x.t() @ torch.linalg.solve(gram, target - bias) / len(x), bias)
    gram = x.t() @ x / len(x) + l2 * torch.eye(x.shape[1], dtype=x.dtype)
    return LinearProbe(mean, std, torch.linalg.solve(gram, x.t() @ (target - bias) / len(x)), bias)


def fit_linear(
    features: Float[Tensor, "n F"],
    labels: Int[Tensor, "n"],
    l2: float,
    *,
    scale: Scale | None = None,
    start: LinearProbe | None = None,
    max_iter: int = 100,
) -> LinearProbe:
    """Minimise mean cross-entropy + l2/2·‖weight‖² on standardised features.

    The problem is preconditioned: it is solved for Lᵀ·weight, where L·Lᵀ is the curvature at equal probabilities of
    all classes. Features are strongly correlated, and this takes some fifty iterations instead of hundreds. Of fewer
    images than features it is solved in the space that these images span, where the solution lies.

    Args:
        l2: strength of the regularisation; the bias is not regularised.
        scale: for standardisation; None for that of `features`.
        start: the initial weights, as of a fit with stronger regularisation; None for zero.
    """
    mean, std = scale or scale_of(features)
    x = (features - mean) / std
    basis = torch.linalg.qr(x.t())[0] if len(x) < x.shape[1] else None
    x = x if basis is None else x @ basis
    num_classes = int(labels.max()) + 1
    spread = (1 - 1 / num_classes) / num_classes
    lower = torch.linalg.cholesky(x.t() @ x * (spread / len(x)) + l2 * torch.eye(x.shape[1], dtype=x.dtype))
    scaled = torch.zeros(x.shape[1], num_classes)
    if start is not None:
        scaled = lower.t() @ (start.weight if basis is None else basis.t() @ start.weight)
    bias = torch.zeros(num_classes) if start is None else start.bias.clone()
    for parameter in (scaled, bias):
        parameter.requires_grad_()
    optimizer = torch.optim.LBFGS([scaled, bias], max_iter=max_iter, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        weight = torch.linalg.solve_triangular(lower.t(), scaled, upper=True)
        loss = F.cross_entropy(torch.addmm(bias, x, weight), labels) + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    weight = torch.linalg.solve_triangular(lower.t(), scaled.detach(), upper=True)
    return LinearProbe(mean, std, weight if basis is None else basis @ weight, bias.detach())


def fit_path(
    features: Float[Tensor, "n F"], labels: Int[Tensor, "n"], strengths: Sequence[float], scale: Scale
) -> dict[float, LinearProbe]:
    """`fit_linear` for each regularisation strength: strongest first, as each fit starts from the solution before."""
    probes: dict[float, LinearProbe] = {}
    for l2 in strengths:
        probes[l2] = fit_linear(features, labels, l2, scale=scale, start=next(reversed(probes.values()), None))
    return probes


@dataclass(frozen=True)
class Split:
    """Positions of the training images for fitting classifiers, and of those for choices (validation)."""

    fit: Int[Tensor, "n"]
    validation: Int[Tensor, "v"]

    @staticmethod
    def of(num_images: int, validation: float, seed: int) -> "Split":
        """A split with a share of validation images, the same for all networks of a comparison; no part is empty."""
        order = torch.from_numpy(random_order(num_images, seed))
        aside = min(max(1, round(validation * num_images)), num_images - 1)
        return Split(fit=order[aside:], validation=order[:aside])

    @staticmethod
    def of_groups(groups: NDArray[np.int64], validation: float, seed: int) -> "Split":
        """A split in which all images of a group are on one side; `groups` has a number for each image."""
        fit, aside = hold_out(len(groups), validation, seed, groups=groups)
        return Split(torch.from_numpy(fit), torch.from_numpy(aside))

    @staticmethod
    def behind(num_images: int, num_validation: int, seed: int) -> "Split":
        """The split of training images with all validation images behind them."""
        order = torch.from_numpy(random_order(num_images, seed))
        return Split(fit=order, validation=torch.arange(num_images, num_images + num_validation))


@dataclass(frozen=True)
class ProbeResult:
    """Accuracies on the test images, in [0, 1].

    Attributes:
        linear: linear probe with the layer, pooling and regularisation that are best on the validation images.
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


def probe(train: Features, train_labels: Tensor, test: Features, test_labels: Tensor, split: Split) -> ProbeResult:
    """Evaluate features of a frozen network.

    For every layer and pooling, ridge regression and k-NN are fitted on up to 6 000 images and evaluated on the
    validation images. On the best layer, logistic regression is fitted to all training images without the validation
    images, once per regularisation strength; the best one on the validation images is evaluated on the test images.

    Args:
        train, test: features by layer, n x F and m x F.
        train_labels, test_labels: classes 0, 1, ...
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
    probes = fit_path(fit_x, fit_y, _QUICK_L2_STRENGTHS, scale_of(fit_x))
    chosen = max(probes.values(), key=lambda fitted: fitted.accuracy(x[checked], y[checked]))
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


def _few_labels(x: Tensor, y: Tensor, test: Tensor, test_labels: Tensor, split: Split) -> float:
    """Accuracy with 1 % of the labels, drawn evenly over the classes, mean over five disjoint draws."""
    by_class = [split.fit[y[split.fit] == c] for c in y[split.fit].unique()]
    each = max(1, round(FEW_LABELS * len(split.fit) / len(by_class)))
    draws = max(1, min(5, min(len(members) for members in by_class) // each))
    accuracies = []
    for draw in range(draws):
        few = torch.cat([members[draw * each : (draw + 1) * each] for members in by_class])
        accuracies.append(fit_linear(x[few], y[few], 1e-2).accuracy(test, test_labels))
    return sum(accuracies) / draws


def probe_backbone(backbone: VisionTransformer, images: InMemoryData, compute: Compute) -> ProbeResult:
    """k-NN and linear probe of every layer; layer and regularisation are chosen on a part of the training images."""
    train, test = (
        extract(backbone, resized(part, backbone.config.img_size), compute, poolings=_QUICK_POOLINGS)
        for part in (images.train, images.held_out)
    )
    split = Split.of(len(images.train), _VALIDATION, seed=0)
    return probe(train, images.train.labels, test, images.held_out.labels, split)


def probe_pixels(images: InMemoryData) -> ProbeResult:
    """The same probes on raw pixels."""
    split = Split.of(len(images.train), _VALIDATION, seed=0)
    train, test = (pixel_features(part) for part in (images.train, images.held_out))
    return probe(train, images.train.labels, test, images.held_out.labels, split)


def pixel_features(images: InMemoryDataset) -> Features:
    """Pixels in [0, 1] as the only layer; images larger than 32 x 32 are shrunk to that, by means over areas."""
    height, width = (min(side, _MAX_PIXELS) for side in images.images.shape[-2:])
    parts = [F.adaptive_avg_pool2d(as_unit_range(part), (height, width)) for part in images.images.split(_CHUNK)]
    return {(0, "pixels"): torch.cat(parts).flatten(1)}


def untrained(vit: ViT) -> dict[str, ViT]:
    """The network in two initialisations, by name: the paper's and the one used; by width where these are the same.

    The paper's is made for a width of 768: in narrow networks it alone would be a weak baseline.
    """
    paper = replace(vit, init="uniform", pos_init="uniform")
    other = {RANDOM_WIDTH: replace(vit, init="width")} if paper == vit else {RANDOM_USED: vit}
    return {RANDOM_PAPER: paper} | other
