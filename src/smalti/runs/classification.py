"""Classification as a task of `smalti finetune`: network, objective, batches and what is measured."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.core.config import require, setting
from smalti.data.changes import Change
from smalti.data.mixing import Mixing
from smalti.data.sources.resident import Resident
from smalti.evaluation.classification import accuracies, class_scores, confusion, describe_classes
from smalti.models.classifier import ImageClassifier, Pooling, build_classifier
from smalti.models.vit import ViT
from smalti.training.classify import Classify

_MOST_CLASSES = 100
"""Up to so many classes result.json has the whole table of confusions."""


@dataclass(frozen=True)
class Classification:
    """Say which class an image shows."""

    pooling: Pooling = setting("mean", "what the head sees: the mean of the patches, or [S] (cls)", "BEiT §2.6")
    label_smoothing: float = setting(0.1, "share of the label that all classes get alike", "released code")
    mixing: Mixing = Mixing()

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, f"a label_smoothing of {self.label_smoothing}", "use one in [0, 1)")

    @property
    def score(self) -> str:
        """The number that decides which weights are best."""
        return "accuracy"

    def build(self, backbone: ViT, classes: tuple[str, ...], seed: int = 0) -> ImageClassifier:
        """A network with freshly drawn weights."""
        return build_classifier(backbone, len(classes), self.pooling, seed)

    def objective(self, model: ImageClassifier) -> Classify:
        """What is minimised."""
        return Classify(model, self.label_smoothing)

    def changes(self, classes: tuple[str, ...]) -> tuple[Change, ...]:
        """What is done to a batch last."""
        return (partial(self.mixing, num_classes=len(classes)),) if self.mixing.on else ()

    def measure(self, model: nn.Module, images: Resident, size: tuple[int, int], compute: Compute) -> dict[str, float]:
        """A few numbers, to choose by."""
        return accuracies(self._scores(model, images, size, compute), images.labels)

    def report(self, model: nn.Module, images: Resident, size: tuple[int, int], compute: Compute) -> dict[str, Any]:
        """All numbers, at the end."""
        scores = self._scores(model, images, size, compute)
        table = confusion(scores, images.labels)
        return accuracies(scores, images.labels) | describe_classes(table, images.classes, _MOST_CLASSES)

    def _scores(self, model: nn.Module, images: Resident, size: tuple[int, int], compute: Compute) -> Tensor:
        return class_scores(model, images, size, compute)
