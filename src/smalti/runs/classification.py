"""Classification as a task of `smalti finetune`: network, objective, batches and what is measured."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.core.config import require, setting
from smalti.core.log import Log
from smalti.data.changes import Change
from smalti.data.gallery import open_gallery
from smalti.data.load import Data, Images, StoredImages
from smalti.data.loader import Gallery
from smalti.data.mixing import Mixing
from smalti.data.scenes import SceneImages, Scenes
from smalti.data.sources.resident import Resident
from smalti.data.views import TwoViews
from smalti.evaluation.classification import accuracies, class_scores, confusion, describe_classes
from smalti.models.classifier import ImageClassifier, Pooling, build_classifier
from smalti.models.vit import ViT
from smalti.runs.labelled import Given, Labelled, Shares, divide
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

    def open(self, data: Data, log: Log, bad_files: Path) -> Images | StoredImages:
        """The images of DATA, some of them held out."""
        return data.open(log, bad_files)

    def divide(self, given: Given, data: Data, test: str, validation_data: str, shares: Shares, log: Log) -> Labelled:
        """What to learn from, to choose on, and to be judged on; see `labelled.divide`."""
        assert not isinstance(given, SceneImages)
        return divide(given, data, test, shares, log, validation_data)

    def gallery(self, images: Given, views: TwoViews, data: Data, batch_size: int, device: torch.device) -> Gallery:
        """Shows the images that a run learns from."""
        assert not isinstance(images, SceneImages)
        return open_gallery(images, views, data, batch_size, device)

    def build(self, backbone: ViT, classes: tuple[str, ...], seed: int = 0) -> ImageClassifier:
        """A network with freshly drawn weights."""
        return build_classifier(backbone, len(classes), self.pooling, seed)

    def objective(self, model: nn.Module) -> Classify:
        """What is minimised."""
        assert isinstance(model, ImageClassifier)
        return Classify(model, self.label_smoothing)

    def changes(self, classes: tuple[str, ...]) -> tuple[Change, ...]:
        """What is done to a batch last."""
        return (partial(self.mixing, num_classes=len(classes)),) if self.mixing.on else ()

    def measure(
        self, model: nn.Module, images: Resident | Scenes, size: tuple[int, int], compute: Compute
    ) -> dict[str, float]:
        """A few numbers, to choose by."""
        assert isinstance(images, Resident)
        return accuracies(self._scores(model, images, size, compute), images.labels)

    def report(
        self, model: nn.Module, images: Resident | Scenes, size: tuple[int, int], compute: Compute
    ) -> dict[str, Any]:
        """All numbers, at the end."""
        assert isinstance(images, Resident)
        scores = self._scores(model, images, size, compute)
        table = confusion(scores, images.labels)
        return accuracies(scores, images.labels) | describe_classes(table, images.classes, _MOST_CLASSES)

    def _scores(self, model: nn.Module, images: Resident, size: tuple[int, int], compute: Compute) -> Tensor:
        return class_scores(model, images, size, compute)
