"""Curves of our own pretraining runs, which come with the package, and which of them is nearest to another run.

Runs differ in vocabulary, images and masks, so gains are compared and not losses: how far a loss lies below what a
guess costs that never looks at the image.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np

from smalti.core.config import from_json, require

MOST_POINTS = 60
"""Of a curve that comes with the package."""
FLAT_PATCH = 1.0
"""Squared error of a patch of one colour where patches are normalised; a little less where many are flat themselves."""
_NEAR = {"tokens": 0.1, "pixels": 0.03}
_NEAR_SHARE = 0.1

TargetName = Literal["tokens", "pixels"]
Masks = Literal["blocks", "random"]


@dataclass(frozen=True)
class Setup:
    """What decides how low a loss can be, beside the images.

    Attributes:
        target: visual tokens, or pixels of normalised patches with squared error. Their losses have different units.
        vocab_size: visual tokens; None for pixels.
        num_patches, num_masked_patches: of an image; of these the most that a mask covers.
        embed_dim, depth: of the backbone.
        num_images: images seen at the end, counting repetitions: steps times batch.
        masks: neighbours together, or each patch by itself, which is much easier: its neighbours tell what it is.
    """

    target: TargetName
    vocab_size: int | None
    num_patches: int
    num_masked_patches: int
    embed_dim: int
    depth: int
    num_images: int
    masks: Masks

    def __post_init__(self) -> None:
        pixels, has = self.target == "pixels", "without" if self.vocab_size is None else "with"
        require(pixels == (self.vocab_size is None), f"{self.target} {has} a vocabulary")

    def distance(self, other: "Setup") -> tuple[bool, float, float]:
        """Whether masks are of another kind, how different the sizes are, and how different the lengths are.

        Of sizes it is Σ |ln(a / b)| over vocabulary, patches, masked share and size of the backbone (depth · width²).
        The length decides among equals: the learning rate, and with it the loss, falls towards the end of a run.
        """
        pairs = zip(self._sizes(), other._sizes(), strict=True)
        apart = sum(abs(math.log(ours / theirs)) for ours, theirs in pairs)
        return self.masks != other.masks, round(apart, 9), abs(math.log(self.num_images / other.num_images))

    def differences(self, other: "Setup") -> list[str]:
        """`512 visual tokens (1024)`: what is otherwise here than there."""
        named = {
            "visual tokens": (self.vocab_size, other.vocab_size),
            "patches": (self.num_patches, other.num_patches),
            "% masked": (self._percent_masked(), other._percent_masked()),
            "masks": (self.masks, other.masks),
            "wide": (self.embed_dim, other.embed_dim),
            "blocks": (self.depth, other.depth),
            "images seen at the end": (self.num_images, other.num_images),
        }
        return [f"{ours} {name} ({theirs})" for name, (ours, theirs) in named.items() if ours != theirs]

    def _sizes(self) -> tuple[float, ...]:
        masked = self.num_masked_patches / self.num_patches
        return float(self.vocab_size or 1), float(self.num_patches), masked, float(self.depth * self.embed_dim**2)

    def _percent_masked(self) -> int:
        return round(100 * self.num_masked_patches / self.num_patches)


@dataclass(frozen=True)
class Reference:
    """A run of ours.

    Attributes:
        data: what it learned from, in words.
        baseline: loss of a guess that never looks at the image: the unigram entropy of the tokens in nats; 1 of pixels.
        held_out_loss: on whole held-out images at the end.
        images: images seen at each point of the curve, rising.
        loss: training loss there, per masked patch: nats, or squared error.
    """

    name: str
    data: str
    setup: Setup
    baseline: float
    held_out_loss: float
    images: tuple[int, ...]
    loss: tuple[float, ...]

    def __post_init__(self) -> None:
        points = len(self.images)
        require(0 < points <= MOST_POINTS, f"a reference of {points} points", f"use 1 to {MOST_POINTS}")
        require(points == len(self.loss), f"{points} numbers of images and {len(self.loss)} losses")
        rising = all(before < after for before, after in zip((0, *self.images), self.images, strict=False))
        require(rising, "numbers of images that do not rise")

    def gain(self, images: int) -> float | None:
        """Baseline minus loss when so many images have been seen; None before the first point and after the last.

        Between two points it is linear in the logarithm of the images.
        """
        if not self.images[0] <= images <= self.images[-1]:
            return None
        return self.baseline - float(np.interp(np.log(images), np.log(self.images), self.loss))

    @property
    def held_out_gain(self) -> float:
        """The same on whole held-out images, at the end."""
        return self.baseline - self.held_out_loss


def standing(gain: float, reference: float, target: TargetName) -> str:
    """Whether a run is `ahead`, `as far` or `behind`, when a reference had gained so much.

    As far is what differs by at most a tenth of the reference's gain, or by 0.1 nats (of pixels 0.03), whichever is
    more. A loss is that of one batch: two runs of ours with the same settings and two tokenizers differ by more at one
    of 46 points. A run that is behind need not be worse: images may be harder, and a longer schedule learns later.
    """
    near = max(_NEAR[target], _NEAR_SHARE * abs(reference))
    return "as far" if abs(gain - reference) <= near else "ahead" if gain > reference else "behind"


def references() -> list[Reference]:
    """The curves that come with the package, in the order of their names."""
    folder = resources.files("smalti.evaluation") / "references"
    files = [file for file in folder.iterdir() if file.name.endswith(".json")]
    found = [from_json(Reference, json.loads(file.read_text()), where=file.name) for file in files]
    return sorted(found, key=lambda reference: reference.name)


def nearest(setup: Setup, among: Iterable[Reference]) -> Reference | None:
    """The run with the same target and the most similar setup (`Setup.distance`); None where no target is the same."""
    same = [reference for reference in among if reference.setup.target == setup.target]
    return min(same, key=lambda reference: setup.distance(reference.setup), default=None)


def thinned(images: Sequence[int], loss: Sequence[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """A curve of at most 60 points: means of runs of neighbours, which are longer towards the end.

    Losses fall with the logarithm of the images, so a point stands at the geometric mean of those it is of.
    """
    starts = np.unique(np.geomspace(1, len(images), MOST_POINTS).round().astype(int)) - 1
    sizes = np.diff(starts, append=len(images))
    means = (np.add.reduceat(values, starts) / sizes for values in (np.log(images), np.array(loss, dtype=np.float64)))
    places, heights = means
    return tuple(round(place) for place in np.exp(places).tolist()), tuple(round(y, 4) for y in heights.tolist())


def vocab_size_of(result: Mapping[str, Any]) -> int | None:
    """Visual tokens of a finished run, whose result says what a uniform guess among them costs: ln V."""
    return round(math.exp(result["bound"]["uniform_rate_nats_per_patch"])) if "bound" in result else None
