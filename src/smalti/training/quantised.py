"""The objective of stage one with a quantised bottleneck (VQ, FSQ)."""

import torch
from jaxtyping import Int
from torch import Tensor

from smalti.core.contracts import Batch, Objective, StepOutput
from smalti.distributed.collectives import all_gather
from smalti.functional.losses import Likelihood, reconstruction_loss
from smalti.models.vit import as_unit_range
from smalti.tokenizers.quantised import Quantised


class QuantisedObjective(Objective):
    """Reconstruction + commitment · ‖point - value‖², as means over sub-pixels and over positions.

    The gradient of the reconstruction is straight-through; `follow` updates the codebook after the step.

    Reference: van den Oord et al. 2017, eq. 3 (its second term is replaced by moving averages); Mentzer et al. 2023.
    """

    def __init__(self, tokenizer: Quantised, likelihood: Likelihood = "logit_laplace") -> None:
        super().__init__()
        self.model: Quantised = tokenizer
        self.likelihood: Likelihood = likelihood
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        images = as_unit_range(batch.image if batch.token_image is None else batch.token_image)
        points = self.model.points(images)
        ids = self.model.nearest(points.detach())
        mean, log_scale = self.model.reconstructed(points, ids)
        cost = reconstruction_loss(self.likelihood, images, mean, log_scale).mean()
        distance = (points - self.model.values(ids)).square().sum(-1).mean()
        if self.training:
            self._seen = points.detach().flatten(0, 2), ids.flatten()
        count = torch.tensor(float(len(images)), device=cost.device)
        said = {
            "nll" if self.likelihood == "logit_laplace" else self.likelihood: cost.detach(),
            "gap": distance.detach(),
        }
        metrics = {name: (value * count, count) for name, value in (said | self.model.meters()).items()}
        return StepOutput((cost + self.model.commitment * distance) * count, count, metrics)

    def follow(self, step: int) -> None:
        """Update the codebook with the points of the last step."""
        if self._seen is not None:
            points, ids = self._seen
            self.model.follow(all_gather(points), all_gather(ids), step)
            self._seen = None
