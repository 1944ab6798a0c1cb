"""Stage two: predict what is masked from what is not."""

from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from smalti.core.contracts import Batch, Objective, StepOutput, Target
from smalti.functional.losses import weights_of_equal_images
from smalti.functional.noise import uniform_noise
from smalti.functional.patches import rows
from smalti.models.mim import MaskedImageModel
from smalti.training.targets import Tokens

_TOKENS = Tokens()


class MaskedImageModeling(Objective):
    """The cost of the predictions at masked patches, as a mean over all of them (BEiT eq. 1), or over images.

    Args:
        predicted: share of the masked patches that a training step predicts; when measured, all are.
    """

    def __init__(
        self,
        model: MaskedImageModel,
        target: Target = _TOKENS,
        equal_images: bool = False,
        predicted: float = 1.0,
    ) -> None:
        super().__init__()
        self.model: MaskedImageModel = model
        self.predicted = predicted
        self.target, self.equal_images = target, equal_images

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        assert batch.mask is not None
        assert batch.mask_index is not None
        chosen = some_masked(batch, self.predicted) if self.training and self.predicted < 1 else batch
        assert chosen.mask_weight is not None
        key = batch.key if self.training else None
        predicted = self.model(batch.image, batch.mask, batch.mask_index, key, chosen.mask_index)
        weight = weights_of_equal_images(chosen.mask_weight) if self.equal_images else chosen.mask_weight
        return self.target(predicted, chosen, weight)


def some_masked(batch: Batch, share: float) -> Batch:
    """The batch with a share of its masked patches, at least one, in `mask_index`, drawn from the keys.

    `mask` stays as it is. Rows of `mask_weight` that are all 0 stay so; in others padding may be drawn too.
    """
    assert batch.mask_index is not None
    assert batch.mask_weight is not None
    count = batch.mask_index.shape[1]
    drawn = uniform_noise(batch.key, count, stream=2).topk(max(1, round(share * count))).indices.sort().values
    return replace(
        batch,
        mask_index=batch.mask_index.gather(1, drawn),
        mask_weight=batch.mask_weight.gather(1, drawn),
        scores=None if batch.scores is None else rows(batch.scores, drawn),
    )
