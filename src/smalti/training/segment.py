"""The objective of fine-tuning for semantic segmentation."""

import torch
from jaxtyping import Int
from torch import Tensor

from smalti.core.contracts import Batch, Objective, StepOutput
from smalti.functional.pixel_classes import VOID, pixel_nats
from smalti.models.segmenter import Segmenter


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
