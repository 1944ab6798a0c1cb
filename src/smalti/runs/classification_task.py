"""Classification as a task of `smalti finetune`: network, objective, batches and metrics."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.core.config import require, setting
from smalti.core.contracts import Batch
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset, InMemoryDataset
from smalti.data.datasets.labels import SEPARATOR, label_names, shown_labels
from smalti.data.load import AnyImages, Data, RunImages
from smalti.data.loader import ViewSource, open_view_source
from smalti.data.reading import spread_over_classes
from smalti.data.transforms.batch_transforms import BatchTransform, Mixing
from smalti.data.transforms.views import TwoViews
from smalti.evaluation.supervised import (
    accuracies,
    average_precisions,
    class_scores,
    describe_classes,
    mean_average_precision,
)
from smalti.models.classifier import ImageClassifier, Pooling, build_classifier
from smalti.models.vit import ViT
from smalti.report.page import Section
from smalti.report.pictures import scale_of, tile_row, to_pixels
from smalti.runs.model_selection import LabelledSplits, Measured, Shares, divide, read_labelled
from smalti.training.objectives import Classify, ClassifySeveral

_SHOWN = 12
"""Images in a report."""
_MAX_CLASSES = 100
"""Up to so many classes result.json has the whole table of confusions."""


@dataclass(frozen=True)
class Classification:
    """Say which class an image shows, or which of several labels it has."""

    pooling: Pooling = setting("mean", "what the head sees: the mean of the patches, or [S] (cls)", "BEiT §2.6")
    label_smoothing: float = setting(0.1, "share of the label that all classes get alike", "released code")
    multi_label: bool = setting(False, "an image has any number of labels, written with | between them: cat|dog")
    mixing: Mixing = Mixing()

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, f"a label_smoothing of {self.label_smoothing}", "use one in [0, 1)")

    @property
    def score(self) -> str:
        """The name of the score that selects the weights."""
        return "mean_average_precision" if self.multi_label else "accuracy"

    def outputs(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The names of the network's outputs, given the class names of a data source."""
        return label_names(classes) if self.multi_label else classes

    def resolved(self, images: ImageDataset) -> "Classification":
        """The task itself: nothing of it is decided by the images."""
        return self

    def images_of(self, path: str) -> str:
        """DATA, which has images alone."""
        return path

    def open(self, data: Data, log: Log, bad_files: Path | None) -> RunImages:
        """The images of DATA that have a label, some of which are held out."""
        return data.open(log, bad_files, labelled=True)

    def divide(
        self, given: AnyImages, data: Data, test: str, validation_data: str, shares: Shares, log: Log
    ) -> LabelledSplits:
        """The training, validation and test images; see `model_selection.divide`.

        Raises:
            UsageError: images have several labels, and one is to be learned.
        """
        several = next((name for name in given.train.classes if SEPARATOR in name), "")
        require(
            self.multi_label or not several or data.label_separator == "none",
            f"images of {data.path} have several labels, such as '{several[:60]}'",
            "learn each label with --task.multi-label, or each text as one class with --data.label-separator none",
        )
        return divide(given, data, test, shares, log, self.outputs, validation_data)

    def read(self, path: str, data: Data, outputs: tuple[str, ...], log: Log) -> InMemoryDataset:
        """All images of a DATA, to evaluate a network with these outputs.

        Raises:
            DataError: the images have no labels, or other labels.
        """
        return read_labelled(path, "measured on", data, outputs, self.outputs, log)

    def view_source(
        self, images: AnyImages, views: TwoViews, data: Data, batch_size: int, device: torch.device
    ) -> ViewSource:
        return open_view_source(images, views, data, batch_size, device)

    def build(self, backbone: ViT, outputs: tuple[str, ...], seed: int = 0) -> ImageClassifier:
        """A network with randomly initialised weights."""
        return build_classifier(backbone, len(outputs), self.pooling, seed)

    def objective(self, model: nn.Module) -> Classify | ClassifySeveral:
        assert isinstance(model, ImageClassifier)
        kind = ClassifySeveral if self.multi_label else Classify
        return kind(model, self.label_smoothing)

    def batch_transforms(self, classes: tuple[str, ...]) -> tuple[BatchTransform, ...]:
        """The last transforms of each batch."""
        names = self.outputs(classes)
        several = (partial(_with_labels, table=shown_labels(classes, names)),) if self.multi_label else ()
        return (*several, *((partial(self.mixing, num_classes=len(names)),) if self.mixing.on else ()))

    def measure(
        self, model: nn.Module, images: ImageDataset, outputs: tuple[str, ...], size: tuple[int, int], compute: Compute
    ) -> Measured:
        """Evaluate a network with these outputs."""
        scores = class_scores(model, images, size, compute)
        if not self.multi_label:
            labels = images.all_labels()
            return Measured(accuracies(scores, labels), describe_classes(scores, labels, outputs, _MAX_CLASSES))
        found = average_precisions(scores, _shown(images, outputs))
        by_label = dict(zip(outputs, found, strict=True))
        return Measured({self.score: mean_average_precision(found)}, {"average_precision": by_label})

    def pictures(
        self,
        model: nn.Module,
        images: ImageDataset,
        outputs: tuple[str, ...],
        size: tuple[int, int],
        compute: Compute,
        show_channels: tuple[int, ...] | None = None,
    ) -> Section:
        """Some images, spread over their classes, with what the network says and what is true."""
        shown = images.select(spread_over_classes(images.all_labels(), _SHOWN))
        assert shown.pixels is not None, "test images are in memory"
        scores = class_scores(model, shown, size, compute)
        said = self.names(scores, outputs)
        true = [shown.classes[label] for label in shown.all_labels().tolist()]
        captions = [f"{guess} (true: {name})" for guess, name in zip(said, true, strict=True)]
        pixels = list(to_pixels(shown.pixels, show_channels))
        html = tile_row({"image": pixels}, scale=scale_of(shown.pixels.shape[-1]), captions=captions, across=4)
        return Section("Test images, and what the network says", html, "The most likely class with its probability.")

    def names(self, scores: Float[Tensor, "n classes"], outputs: tuple[str, ...]) -> list[str]:
        """What logits say of each image: the most likely class, or all labels that are at least as likely as not."""
        if not self.multi_label:
            best = scores.softmax(1).max(1)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            return [f"{outputs[number]} {share:.0%}" for number, share in pairs]
        rows = [[(name, share) for name, share in zip(outputs, row, strict=True)] for row in scores.sigmoid().tolist()]
        said = [", ".join(f"{name} {share:.0%}" for name, share in row if share >= 0.5) for row in rows]
        return [text or "none of its labels" for text in said]


def _shown(images: ImageDataset, outputs: tuple[str, ...]) -> Float[Tensor, "n labels"]:
    return shown_labels(images.classes, outputs)[images.all_labels()]


def _with_labels(batch: Batch, table: Float[Tensor, "classes labels"]) -> Batch:
    assert batch.label is not None
    return replace(batch, target=table.to(batch.label.device)[batch.label])
