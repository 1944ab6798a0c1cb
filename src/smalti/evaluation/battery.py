"""Evaluation of frozen features: k-NN, linear probe and few labels, with layers chosen on validation images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.config import require, setting
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.evaluation.features import Layer, Pooling, extract
from smalti.evaluation.label_draws import BUDGETS, Budget, Interval, mean_share_interval, share_interval
from smalti.evaluation.probe import Features, LinearProbe, Split, fit_path, fit_ridge, knn_accuracy, scale_of
from smalti.models.vit import VisionTransformer

L2_STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
FEW_L2_STRENGTHS = (10.0, 1.0, 1e-1, 1e-2, 1e-3)
"""Strongest first, as each fit starts from the previous solution."""
_RIDGE = 0.1
_KNN, _LINEAR = "k-NN", "linear"


@dataclass(frozen=True)
class FewLabels:
    """Accuracy of the linear probe with few labels.

    Attributes:
        accuracy: on the test images, mean over the draws, in [0, 1].
        interval: 95 % confidence interval of that mean, by Student's t, cut to [0, 1]; None for a single draw.
        layer, pooling, l2: the best on the validation images, on average over the draws.
    """

    labels: int
    draws: int
    accuracy: float
    interval: Interval | None
    layer: int
    pooling: str
    l2: float


@dataclass(frozen=True)
class BatteryResult:
    """Accuracies of frozen features, in [0, 1].

    Attributes:
        linear: linear probe on the test images, with the chosen `layer`, `pooling` and `l2`.
        linear_interval, knn_interval: 95 % confidence over test images (Wilson); variance between training runs is not
            included.
        validation, knn_validation: accuracies on the validation images by layer and pooling, for the choice.
        knn: k-NN on the test images, on the layer that was best for it on the validation images.
        few: results by name of the budget; `100 %` are all images on which classifiers are fitted.
    """

    linear: float
    linear_interval: Interval
    layer: int
    pooling: str
    l2: float
    validation: Mapping[str, float]
    knn: float
    knn_interval: Interval
    knn_layer: int
    knn_pooling: str
    k: int
    knn_validation: Mapping[str, float]
    few: Mapping[str, FewLabels]
    seed: int
    fit_images: int
    validation_images: int
    test_images: int

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)

    def describe(self) -> str:
        """The result as a short table."""
        rows = [
            ("k-NN", f"{self.fit_images:,}", self.knn, self.knn_interval, self.knn_layer, self.knn_pooling),
            ("linear probe", f"{self.fit_images:,}", self.linear, self.linear_interval, self.layer, self.pooling),
            *(
                (f"  {name}", f"{few.labels:,}", few.accuracy, few.interval, few.layer, few.pooling)
                for name, few in self.few.items()
                if few.interval is not None
            ),
        ]
        header = f"{'frozen features':<16} {'labels':>8} {'accuracy':>9} {'95 %':>15}   best layer"
        return "\n".join(
            [
                header,
                *(
                    f"{name:<16} {labels:>8} {accuracy:>9.1%} {low:>7.1%} {high:>7.1%}   {layer} ({pooling})"
                    for name, labels, accuracy, (low, high), layer, pooling in rows
                ),
            ]
        )


class _Task(NamedTuple):
    """Labels, the split into fitting and validation images, and the labelled images of every draw."""

    labels: Int[Tensor, "n"]
    split: Split
    draws: Mapping[Budget, Sequence[Int[Tensor, "_"]]]

    def validated(self, probe: LinearProbe, x: Tensor) -> float:
        return probe.accuracy(x[self.split.validation], self.labels[self.split.validation])


@dataclass(frozen=True)
class Battery:
    """The evaluation of frozen features.

    Layer, pooling and regularisation are chosen on validation images, a part of the training images on which no
    classifier is fitted. Every result then uses the test images once.

    - Layers are compared by k-NN and by logistic regression with each of `L2_STRENGTHS`, on up to `selection_images`
      training images; for few labels by least squares on every draw.
    - On the best layer, logistic regression is fitted with each of `L2_STRENGTHS` to all training images without the
      validation images; for few labels with each of `FEW_L2_STRENGTHS` to every draw.
    - Features are standardised by statistics of all fitting images, also where only few of them have labels.

    Differs: the released code chooses the layer on the images whose accuracy it reports; most published few-label
    accuracies are those of one draw.
    """

    poolings: tuple[Pooling, ...] = setting(("cls", "mean", "both"), "how a layer becomes a vector; also: 2x2")
    validation: float = setting(0.1, "share of the training images that choices are made on")
    k: int = setting(20, "neighbours that vote", "DINO: 20")
    draws: int = setting(10, "draws of few labels")
    selection_images: int = setting(10_000, "images that layers are compared with, at most")

    def __post_init__(self) -> None:
        require(len(self.poolings) > 0, "no pooling", "use at least one of cls, mean, both, 2x2")
        require(0 < self.validation < 1, f"a validation share of {self.validation}", "choose one between 0 and 1")
        for name in ("k", "draws", "selection_images"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}", "use at least 1")

    def features(self, backbone: VisionTransformer, images: InMemoryDataset, compute: Compute) -> Features:
        """The features that are evaluated, in half precision; all ranks call this, and share the work."""
        return extract(backbone, images, compute, poolings=self.poolings, dtype=torch.float16, shared=True)

    def __call__(
        self,
        train: Features,
        train_labels: Tensor,
        test: Features,
        test_labels: Tensor,
        seed: int = 0,
        split: Split | None = None,
    ) -> BatteryResult:
        """Evaluate features by layer; `seed` draws validation images and labels.

        Args:
            train: features of the training images, n x F for each layer and pooling.
            test: features of the test images, m x F.
            split: which of the training images are for choices; None: a share of them.
        """
        task = self._task(train_labels, seed, split or Split.of(len(train_labels), self.validation, seed))
        scores: dict[str, dict[Layer, float]] = {}
        for layer, x in train.items():
            for protocol, score in self._validate(x, task):
                scores.setdefault(protocol, {})[layer] = score
        best = {protocol: max(by_layer, key=lambda layer: by_layer[layer]) for protocol, by_layer in scores.items()}
        layer, knn_layer, split = best[_LINEAR], best[_KNN], task.split
        linear, l2 = _linear(train[layer], task, test[layer], test_labels)
        fitted = train_labels[split.fit]
        knn = knn_accuracy(train[knn_layer][split.fit], fitted, test[knn_layer], test_labels, self.k)
        few = {b.name: _few(train, task, test, test_labels, b, best[b.name]) for b in task.draws}
        few["100 %"] = FewLabels(len(split.fit), 1, linear, None, *layer, l2)
        return BatteryResult(
            linear=linear,
            linear_interval=share_interval(linear, len(test_labels)),
            layer=layer[0],
            pooling=layer[1],
            l2=l2,
            validation=_named(scores[_LINEAR]),
            knn=knn,
            knn_interval=share_interval(knn, len(test_labels)),
            knn_layer=knn_layer[0],
            knn_pooling=knn_layer[1],
            k=self.k,
            knn_validation=_named(scores[_KNN]),
            few=few,
            seed=seed,
            fit_images=len(split.fit),
            validation_images=len(split.validation),
            test_images=len(test_labels),
        )

    def _task(self, labels: Tensor, seed: int, split: Split) -> _Task:
        """All draws from the split; budgets that need all images are left out."""
        draws = {b: [b.draw(labels, split.fit, seed, n) for n in range(self.draws)] for b in BUDGETS}
        return _Task(labels, split, {b: drawn for b, drawn in draws.items() if len(drawn[0]) < len(split.fit)})

    def _validate(self, x: Tensor, task: _Task) -> Iterator[tuple[str, float]]:
        """The accuracy of one layer on the validation images, by protocol."""
        y, (fit, checked) = task.labels, (task.split.fit, task.split.validation)
        small, scale = fit[: self.selection_images], scale_of(x[fit])
        yield _KNN, knn_accuracy(x[small], y[small], x[checked], y[checked], self.k)
        yield (
            _LINEAR,
            max(task.validated(probe, x) for probe in fit_path(x[small], y[small], L2_STRENGTHS, scale).values()),
        )
        for budget, draws in task.draws.items():
            probes = [fit_ridge(x[drawn], y[drawn], _RIDGE, scale=scale) for drawn in draws]
            yield budget.name, _mean([task.validated(probe, x) for probe in probes])


def _linear(x: Tensor, task: _Task, test: Tensor, test_labels: Tensor) -> tuple[float, float]:
    """Test accuracy with all labels, and the regularisation chosen on the validation images."""
    fit = task.split.fit
    probes = fit_path(x[fit], task.labels[fit], L2_STRENGTHS, scale_of(x[fit]))
    best = max(probes, key=lambda l2: task.validated(probes[l2], x))
    return probes[best].accuracy(test, test_labels), best


def _few(train: Features, task: _Task, test: Features, test_labels: Tensor, budget: Budget, layer: Layer) -> FewLabels:
    """The result of one budget, with the regularisation that is best on the validation images on average."""
    x, y, draws = train[layer], task.labels, task.draws[budget]
    scale = scale_of(x[task.split.fit])
    paths = [fit_path(x[drawn], y[drawn], FEW_L2_STRENGTHS, scale) for drawn in draws]
    best = max(FEW_L2_STRENGTHS, key=lambda l2: _mean([task.validated(path[l2], x) for path in paths]))
    tested = test[layer]
    accuracies = [path[best].accuracy(tested, test_labels) for path in paths]
    return FewLabels(len(draws[0]), len(draws), _mean(accuracies), mean_share_interval(accuracies), *layer, best)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _named(scores: Mapping[Layer, float]) -> dict[str, float]:
    return {f"{number} {pooling}": score for (number, pooling), score in scores.items()}
