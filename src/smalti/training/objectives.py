"""Objectives: discrete VAEs, quantisers and VQ-KD (stage one), masked image modeling (stage two), fine-tuning.

Fine-tuning learns one class or several labels per image, or the class of every pixel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.config import require, setting
from smalti.core.contracts import Batch, Objective, StepOutput, Target
from smalti.distributed.collectives import all_gather, all_reduce_mean
from smalti.functional.codebook import sample_codes, steps_unused
from smalti.functional.losses import (
    Likelihood,
    class_cross_entropy,
    cosine_distance,
    kl_weight,
    label_cross_entropy,
    marginal_entropy,
    masked_token_loss,
    pixel_cross_entropy,
    reconstruction_loss,
    weights_of_equal_images,
)
from smalti.functional.metrics import VOID, codes_seen, topk_correct
from smalti.functional.noise import uniform_noise
from smalti.functional.patches import gather_rows, patchify
from smalti.functional.schedules import Cosine, Ramp
from smalti.models.classifier import ImageClassifier
from smalti.models.mim import MaskedImageModel
from smalti.models.segmenter import Segmenter
from smalti.models.vit import VisionTransformer, as_unit_range
from smalti.tokenizers.dalle import DallETokenizer
from smalti.tokenizers.dvae import DiscreteVAE, relax, split
from smalti.tokenizers.ema_codebook import EMACodebookTokenizer
from smalti.tokenizers.quantised import Quantised
from smalti.tokenizers.vqkd import VQKDTokenizer
from smalti.training.targets import Tokens, masked_tokens

_TOKENS = Tokens()
_TOP = 5


@dataclass(frozen=True)
class Relaxation:
    """Relaxation of the tokens during training, and measures against dead codes."""

    beta: float = setting(6.6, "weight of the KL, in units of the bound (1 = the bound itself)", "DALL-E, appendix A.2")
    beta_ramp: float = setting(0.02, "share of the steps until beta is reached", "DALL-E: 5 000 steps")
    beta_schedule: Literal["linear", "cosine"] = setting("linear", "how beta rises from 0", "DALL-E, A.2: a cosine")
    temperature: tuple[float, float] = setting((1.0, 1 / 16), "start and end", "DALL-E, appendix A.2")
    anneal_ratio: float = setting(0.5, "share of the steps until the end temperature", "DALL-E: 150 000 steps")
    spread: float = setting(0.0, "weight of the entropy of the mean posterior, in units of the bound")
    dead_after: int | None = setting(
        None, "steps without a position after which a code takes a part of another's; none: never"
    )
    hard: bool = setting(False, "decode the most weighted code alone; gradients as if relaxed", "DALL-E: not so")

    def __post_init__(self) -> None:
        for name in ("beta", "spread"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}", "use 0 or more")
        require(min(self.temperature) > 0, f"temperatures {self.temperature}", "use positive ones")
        require(
            self.dead_after is None or self.dead_after >= 1,
            f"codes dead after {self.dead_after} steps",
            "use at least 1",
        )
        for name in ("anneal_ratio", "beta_ramp"):
            require(0 < getattr(self, name) <= 1, f"{name} is {getattr(self, name)}", "use a share in (0, 1]")

    def ramp(self, steps: int) -> Ramp | Cosine:
        """The schedule of β over `steps` steps."""
        until = max(1, round(self.beta_ramp * steps))
        return Ramp(self.beta, until) if self.beta_schedule == "linear" else Cosine(0.0, self.beta, until)

    def annealing(self, steps: int) -> Cosine:
        """The schedule of the temperature τ over `steps` steps."""
        return Cosine(*self.temperature, steps=max(1, round(self.anneal_ratio * steps)))


def _mean_output(num_images: int, loss: Tensor, metrics: Mapping[str, Tensor]) -> StepOutput:
    """A loss and figures that are means over so many images."""
    count = torch.full((), float(num_images), device=loss.device)
    return StepOutput(loss * count, count, {name: (value.detach() * count, count) for name, value in metrics.items()})


def _loss_name(likelihood: Likelihood) -> str:
    """The name of the reconstruction term in metrics."""
    return "nll" if likelihood == "logit_laplace" else likelihood


class DiscreteVAEObjective(Objective):
    """Stage one: the negative evidence lower bound with relaxed tokens, as a mean over sub-pixels.

    -E_{z~q(z|x)}[ln p(x|z)] + β·KL(q ‖ uniform) - spread·H(mean q)

    With another likelihood than logit-Laplace the first term is an error of pixels in [0, 1] instead of nats. It is a
    hundred times smaller or less, so beta and spread have to be reduced as well.

    Reference: BEiT §2.1.2; DALL-E, appendix A.2.
    """

    def __init__(
        self,
        tokenizer: DiscreteVAE | DallETokenizer,
        relaxation: Relaxation,
        steps: int,
        likelihood: Likelihood = "logit_laplace",
    ) -> None:
        super().__init__()
        self.model: DiscreteVAE | DallETokenizer = tokenizer
        self.config = relaxation
        self.whole_batches = relaxation.dead_after is not None or relaxation.spread > 0
        self.likelihood: Likelihood = likelihood
        self.unused: Tensor
        self._seen: tuple[Tensor, Tensor] | None = None
        if relaxation.dead_after is not None:
            device = next(tokenizer.parameters()).device
            self.register_buffer("unused", torch.zeros(tokenizer.vocab_size, dtype=torch.int64, device=device))
        self.beta, self.temperature = relaxation.ramp(steps), relaxation.annealing(steps)

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        images = as_unit_range(batch.token_view)
        relaxation, now = self.config, int(step)
        tokens, centre, log_scale = relax(self.model, images, batch.key, self.temperature(now), hard=relaxation.hard)
        nll = reconstruction_loss(self.likelihood, images, centre, log_scale).mean()
        unit = kl_weight(1.0, self.model.config.in_chans, self.model.config.stride)
        spread = marginal_entropy(all_reduce_mean(tokens.mean_posterior) if self.training else tokens.mean_posterior)
        loss = nll + unit * (self.beta(now) * tokens.kl - relaxation.spread * spread)
        if self.training and relaxation.dead_after is not None:
            self._seen = tokens.best.flatten(), tokens.ids.flatten()
        ids = all_gather(tokens.ids) if self.training else tokens.ids
        output = _mean_output(len(images), loss, {_loss_name(self.likelihood): nll, "kl": tokens.kl})
        return output._replace(metrics={**output.metrics, "codes": codes_seen(ids, self.model.vocab_size)})

    def after_step(self, step: int) -> None:
        """Split cells of other codes for dead ones, which were not the most likely code for `dead_after` steps."""
        if self.config.dead_after is None or self._seen is None:
            return
        ids = all_gather(self._seen[1])
        self.unused.copy_(steps_unused(self.unused, ids))
        dead = (self.unused >= self.config.dead_after).nonzero()[:, 0]
        if len(dead) == 0:
            return
        scores, parents = all_gather(self._seen[0]), sample_codes(ids, step, count=len(dead))
        dead = dead[: len(parents)]
        split(self.model, dead, parents, torch.stack([scores[ids == parent].mean() for parent in parents]))
        self.unused[dead] = 0


class QuantisedObjective(Objective):
    """Reconstruction + commitment · ‖point - value‖², as means over sub-pixels and over positions.

    The gradient of the reconstruction is straight-through; `after_step` updates the codebook.

    Reference: van den Oord et al. 2017, eq. 3 (its second term is replaced by moving averages); Mentzer et al. 2023.
    """

    def __init__(self, tokenizer: Quantised, likelihood: Likelihood = "logit_laplace") -> None:
        super().__init__()
        self.model: Quantised = tokenizer
        self.whole_batches = isinstance(tokenizer, EMACodebookTokenizer)
        self.likelihood: Likelihood = likelihood
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        images = as_unit_range(batch.token_view)
        points = self.model.points(images)
        ids = self.model.nearest(points.detach())
        mean, log_scale = self.model.reconstruct(points, ids)
        cost = reconstruction_loss(self.likelihood, images, mean, log_scale).mean()
        distance = (points - self.model.values(ids)).square().sum(-1).mean()
        if self.training and self.whole_batches:
            self._seen = points.detach().flatten(0, 2), ids.flatten()
        metrics = {_loss_name(self.likelihood): cost, "gap": distance} | self.model.meters()
        return _mean_output(len(images), cost + self.model.commitment * distance, metrics)

    def after_step(self, step: int) -> None:
        """Update the codebook with the points of the last step."""
        if isinstance(self.model, EMACodebookTokenizer) and self._seen is not None:
            points, ids = self._seen
            self.model.update_codebook(all_gather(points), all_gather(ids), step)
            self._seen = None


class FeatureReconstruction(Objective):
    """VQ-KD: 1 - cos(o, t) + commitment · ‖point - code‖², as means over patches.

    o is what the decoder makes of the codes, t the teacher's feature. The gradient of the first term is
    straight-through; `after_step` updates the codebook. The teacher is no part of the objective's modules.

    Reference: Peng et al. 2022 (BEiT v2), VQ-KD; its term for the codebook is replaced by moving averages, as there.
    """

    whole_batches = True

    def __init__(self, tokenizer: VQKDTokenizer, teacher: VisionTransformer) -> None:
        super().__init__()
        self.model: VQKDTokenizer = tokenizer
        self._teacher = (teacher,)
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        images = as_unit_range(batch.token_view)
        points = self.model.points(images)
        ids = self.model.nearest(points.detach())
        predicted = self.model.predicted_features(points, ids)
        cost = cosine_distance(predicted, self.model.target(self._teacher[0], images)).mean()
        distance = (points - self.model.values(ids)).square().sum(-1).mean()
        if self.training:
            patches = patchify(images, self.model.stride).flatten(0, 1)
            self._seen = points.detach().flatten(0, 2), ids.flatten(), patches
        metrics = {"cosine": 1 - cost, "gap": distance} | self.model.meters()
        return _mean_output(len(images), cost + self.model.commitment * distance, metrics)

    def after_step(self, step: int) -> None:
        """Update the codebook, and what its codes are painted as, with the last step."""
        if self._seen is not None:
            points, ids, patches = (all_gather(seen) for seen in self._seen)
            self.model.update_codebook_and_patches(points, ids, patches, step)
            self._seen = None


class MaskedImageModeling(Objective):
    """The loss at masked patches: a mean over all masked patches of the batch (BEiT eq. 1), or over images.

    In training that of patch aggregation is added where the model has it (BEiT v2); metrics are of the last block.

    Args:
        predicted: share of the masked patches that a training step predicts; in evaluation, all are.
    """

    def __init__(
        self, model: MaskedImageModel, target: Target = _TOKENS, equal_images: bool = False, predicted: float = 1.0
    ) -> None:
        super().__init__()
        self.model: MaskedImageModel = model
        self.target, self.equal_images, self.predicted = target, equal_images, predicted

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        mask, index, _ = batch.masks
        chosen = sample_masked(batch, self.predicted) if self.training and self.predicted < 1 else batch
        _, wanted, weight = chosen.masks
        key = batch.key if self.training else None
        both, aggregated = batch.second_ids is not None, self.training and self.model.aggregation is not None
        predicted = self.model(batch.image, mask, index, key, wanted, both=both, aggregated=aggregated)
        weight = weights_of_equal_images(weight) if self.equal_images else weight
        loss_of, with_metrics = self._two_head_loss if both else self.target, self.with_metrics or not self.training
        if not aggregated:
            return loss_of(predicted, chosen, weight, with_metrics)
        last, shallow = (loss_of(part, chosen, weight, with_metrics) for part in predicted.chunk(2, dim=1))
        each = {"last": (last.loss_sum.detach(), last.weight), "aggregated": (shallow.loss_sum.detach(), last.weight)}
        return StepOutput(last.loss_sum + shallow.loss_sum, last.weight, {**last.metrics, **each})

    def _two_head_loss(
        self, predicted: Float[Tensor, "B K W"], batch: Batch, weight: Float[Tensor, "B K"], with_metrics: bool
    ) -> StepOutput:
        """The mean of the losses of both heads. Metrics are those of the first, and the loss of each."""
        count = self.model.head.out_features
        first = self.target(predicted[..., :count], batch, weight, with_metrics)
        tokens = masked_tokens(replace(batch, ids=batch.second_ids))
        second, total = masked_token_loss(predicted[..., count:], tokens, weight)
        each = {"first": (first.loss_sum.detach(), first.weight), "second": (second.detach(), total)}
        return StepOutput((first.loss_sum + second) / 2, total, {**first.metrics, **each})


def sample_masked(batch: Batch, share: float) -> Batch:
    """The batch with a share of its masked patches, at least one, in `mask_index`, drawn from the keys.

    `mask` stays as it is. Rows of `mask_weight` that are all 0 stay so; in others padding may be drawn too.
    """
    _, index, weight = batch.masks
    count = index.shape[1]
    drawn = uniform_noise(batch.key, count, stream=2).topk(max(1, round(share * count))).indices.sort().values
    return replace(
        batch,
        mask_index=index.gather(1, drawn),
        mask_weight=weight.gather(1, drawn),
        scores=None if batch.scores is None else gather_rows(batch.scores, drawn),
    )


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
        nats = class_cross_entropy(scores, target, self.label_smoothing)
        right, count = topk_correct(scores.detach(), target.argmax(1), _TOP), nats.new_full((), len(nats))
        within = {"accuracy": right[..., 0], "top5": right.any(-1)}
        return StepOutput(nats.sum(), count, {name: (found.sum(), count) for name, found in within.items()})


def class_shares(batch: Batch, num_classes: int) -> Float[Tensor, "B classes"]:
    """The target distribution over the classes: that of mixed images, else one-hot labels."""
    if batch.target is not None:
        return batch.target
    assert batch.label is not None
    return F.one_hot(batch.label, num_classes).float()


class ClassifySeveral(Objective):
    """Binary cross-entropy of every known label, in `target`. Metric: `accuracy`, the share of them predicted right."""

    def __init__(self, model: ImageClassifier, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model: ImageClassifier = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        assert batch.target is not None
        scores = self.model(batch.image, batch.key if self.training else None)
        nats = label_cross_entropy(scores, batch.target, self.label_smoothing)
        known = ~batch.target.isnan()
        right = ((scores.detach() > 0) == (batch.target > 0.5)) & known
        counts = {"accuracy": (right.sum().float(), known.sum().float())}
        return StepOutput(nats.sum(), nats.new_full((), len(nats)), counts)


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
        nats, count = pixel_cross_entropy(scores, batch.label_map)
        for other in others:
            nats = nats + self.auxiliary * pixel_cross_entropy(other, batch.label_map)[0]
        right = (scores.detach().argmax(1) == batch.label_map) & (batch.label_map != VOID)
        return StepOutput(nats, count, {"pixel_accuracy": (right.sum().to(torch.float32), count)})
