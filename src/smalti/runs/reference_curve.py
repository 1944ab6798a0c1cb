"""A pretraining run beside the nearest one of ours: is its loss normal?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smalti.core.contracts import Masking
from smalti.evaluation.reference_curves import (
    DecoderName,
    Masks,
    Reference,
    Setup,
    TargetName,
    nearest,
    references,
    standing,
)
from smalti.functional.masking import Random
from smalti.models.decoder import CrossAttention, Linear
from smalti.models.vit import ViT
from smalti.training.targets import Pixels, SoftTokens, Tokens
from smalti.training.training_plan import Plan


@dataclass(frozen=True)
class ReferenceComparison:
    """Says where a run lies beside a reference when both have seen as many images. It changes nothing of training.

    Attributes:
        baseline: of this run, as `Reference.baseline`; the entropy of the tokens of some training images, shown whole.
    """

    reference: Reference
    setup: Setup
    baseline: float
    batch_size: int

    def __call__(self, step: int, values: Mapping[str, float]) -> str:
        """For the progress line; with soft targets the loss against hard tokens is compared."""
        images = step * self.batch_size
        theirs = self.reference.gain(images)
        if theirs is None:
            return "beyond the reference" if images > self.reference.images[-1] else ""
        gain = self.baseline - values.get("hard", values["loss"])
        return f"reference {self.baseline - theirs:.3f} ({standing(gain, theirs, self.setup.target)})"

    def loss_at(self, step: int) -> float | None:
        """The loss of the reference, moved so that its baseline is this run's."""
        theirs = self.reference.gain(step * self.batch_size)
        return None if theirs is None else self.baseline - theirs

    def describe(self) -> str:
        """Which run it is, and what is otherwise here."""
        differing = ", ".join(self.setup.differences(self.reference.setup)) or "the same settings"
        moved = (
            f", moved to the unigram entropy here, {self.baseline:.3f} nats" if self.setup.target == "tokens" else ""
        )
        return f"{self.reference.name}, a run of ours on {self.reference.data}{moved}; here (and there): {differing}"

    def describe_end(self, measured: Mapping[str, Any]) -> str:
        """Both runs at their ends, each on its own held-out images."""
        reference, ended = self.reference, f"reference {self.reference.name} ended"
        after = f"on its held-out images, after {reference.setup.num_images} images; here it is"
        if self.setup.target == "tokens":
            gain = measured["unigram_entropy_nats"] - measured["loss_nats"]
            said = f"{ended} {reference.held_out_gain:.3f} nats below the unigram entropy {after} {gain:.3f}"
        else:
            said = f"{ended} at a loss of {reference.held_out_loss:.3f} {after} {measured['pixel_loss']:.3f}"
        return f"{said} after {self.setup.num_images}"


def comparison_of(
    target: Tokens | SoftTokens | Pixels,
    backbone: ViT,
    masking: Masking,
    decoder: Linear | CrossAttention,
    plan: Plan,
    vocab_size: int | None,
    baseline: float,
) -> ReferenceComparison | None:
    """The run with its nearest reference; None where there is none.

    Args:
        baseline: as of `ReferenceComparison`.
    """
    setup = setup_of(target, backbone, masking, decoder, plan, vocab_size)
    reference = None if setup is None else nearest(setup, references())
    if setup is None or reference is None:
        return None
    return ReferenceComparison(reference, setup, baseline, plan.batch_size)


def setup_of(
    target: Tokens | SoftTokens | Pixels,
    backbone: ViT,
    masking: Masking,
    decoder: Linear | CrossAttention,
    plan: Plan,
    vocab_size: int | None,
) -> Setup | None:
    """What is compared of a run; None for pixels whose errors have other units than those of the references."""
    if isinstance(target, Pixels) and target != Pixels():
        return None
    rows, columns = backbone.grid
    name: TargetName = "pixels" if isinstance(target, Pixels) else "tokens"
    masked, images = masking.count(backbone.grid), plan.steps * plan.batch_size
    masks: Masks = "random" if isinstance(masking, Random) else "blocks"
    kind: DecoderName = "linear" if isinstance(decoder, Linear) else "cross-attention"
    return Setup(name, vocab_size, rows * columns, masked, backbone.embed_dim, backbone.depth, images, masks, kind)
