"""Objectives of fine-tuning: one class or several labels per image, or the class of every pixel."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.contracts import Batch, Objective, StepOutput
from smalti.functional.losses import class_nats, label_nats
from smalti.functional.metrics import hits
from smalti.functional.pixel_classes import VOID, pixel_nats
from smalti.models.classifier import ImageClassifier
from smalti.models.segmenter import Segmenter

_TOP = 5


class Classify(Objective):
    """Cross-entropy with the class of each image, or with the distribution over classes of a mixed image.

    Metrics: top-1 `accuracy` and `top5`; the class of a mixed image is that with the greatest share.

    Reference: released code, engine_for_finetuning.py.
    """

    def __init__(self, model: ImageClassifier, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model: ImageClassifier = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        scores = self.model(batch.image, batch.key if self.training else None)
        target = class_shares(batch, scores.shape[1])
        nats = class_nats(scores, target, self.label_smoothing)
        right, count = hits(scores.detach(), target.argmax(1), _TOP), nats.new_tensor(len(nats))
        within = {"accuracy": right[..., 0], "top5": right.any(-1)}
        return StepOutput(nats.sum(), count, {name: (found.sum(), count) for name, found in within.items()})


def class_shares(batch: Batch, num_classes: int) -> Float[Tensor, "B classes"]:
    """The target distribution over the classes: that of mixed images, else one-hot labels."""
    if batch.target is not None:
        return batch.target
    assert batch.label is not None
    return F.one_hot(batch.label, num_classes).float()


class ClassifySeveral(Objective):
    """Binary cross-entropy of every label, in `target`. Metric: `accuracy`, the share of labels predicted right."""

    def __init__(self, model: ImageClassifier, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model: ImageClassifier = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        assert batch.target is not None
        scores = self.model(batch.image, batch.key if self.training else None)
        nats = label_nats(scores, batch.target, self.label_smoothing)
        right = ((scores.detach() > 0) == (batch.target > 0.5)).float()
        count = nats.new_tensor(len(nats))
        return StepOutput(nats.sum(), count, {"accuracy": (right.sum(), count * right.shape[1])})


class Segment(Objective):
    """Cross-entropy of the class of every pixel that is not void, plus that of the auxiliary head if there is one.

    Metric: `pixel_accuracy`, the share of those pixels with the right class.

    Reference: released code, semantic_segmentation/: weight 0.4 for the auxiliary head.
    """

    def __init__(self, model: Segmenter, auxiliary: float = 0.0) -> None:
        super().__init__()
        self.model: Segmenter = model
        self.auxiliary = auxiliary

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        assert batch.label_map is not None
        scores, *others = self.model.all_scores(batch.image, batch.key if self.training else None)
        nats, count = pixel_nats(scores, batch.label_map)
        for other in others:
            nats = nats + self.auxiliary * pixel_nats(other, batch.label_map)[0]
        right = (scores.detach().argmax(1) == batch.label_map) & (batch.label_map != VOID)
        return StepOutput(nats, count, {"pixel_accuracy": (right.sum().to(torch.float32), count)})
