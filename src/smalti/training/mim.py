"""The objective of stage two: masked image modeling."""

from jaxtyping import Int
from torch import Tensor

from smalti.core.contracts import Batch, Objective, StepOutput, Target
from smalti.functional.losses import weights_of_equal_images
from smalti.models.mim import MaskedImageModel
from smalti.training.targets import Tokens

_TOKENS = Tokens()


class MaskedImageModeling(Objective):
    """The loss at masked patches: a mean over all masked patches of the batch (BEiT eq. 1), or over images."""

    def __init__(self, model: MaskedImageModel, target: Target = _TOKENS, equal_images: bool = False) -> None:
        super().__init__()
        self.model: MaskedImageModel = model
        self.target, self.equal_images = target, equal_images

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        assert batch.mask is not None
        assert batch.mask_index is not None
        assert batch.mask_weight is not None
        predicted = self.model(batch.image, batch.mask, batch.mask_index, batch.key if self.training else None)
        weight = weights_of_equal_images(batch.mask_weight) if self.equal_images else batch.mask_weight
        return self.target(predicted, batch, weight)
