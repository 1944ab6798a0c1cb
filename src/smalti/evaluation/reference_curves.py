"""Loss curves of our own pretraining runs, which are part of the package, and the choice of one to compare with.

Runs differ in vocabulary, images and masks, so gains are compared instead of losses: the difference between the loss of
a prediction that ignores the image and the loss of the run.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np

from smalti.core.config import from_json, require
from smalti.training.optim import Matrices

MAX_POINTS = 60
"""The most points of a curve in the package."""
FLAT_PATCH = 1.0
"""Squared error of predicting 0 for normalised patches; a little less where many patches have a single colour."""
_NEAR = {"tokens": 0.1, "pixels": 0.03}
_NEAR_SHARE = 0.1
_COMPARABLE = math.log(4)
"""Sum of |ln(a / b)| over the sizes of two setups up to which one run is called ahead of the other."""

_KINDS = ("masks", "decoder", "channels", "optimiser")

TargetName = Literal["tokens", "pixels"]


@dataclass(frozen=True)
class Setup:
    """The settings that determine how low a loss can become, apart from the images.

    Attributes:
        target: visual tokens, or pixels of normalised patches with squared error; their losses have different units.
        vocab_size: V; None for pixels.
        num_patches, num_masked_patches: N, and the most patches that a mask covers.
        num_images: images seen at the end, with repetitions: steps times batch size.
        masks: blocks of patches, or single patches, which are much easier to predict from their neighbours.
        decoder: linear, as in BEiT, or cross-attention behind an encoder of visible patches.
        channels: of the images: 1 grey, 3 RGB.
    """

    target: TargetName
    vocab_size: int | None
    num_patches: int
    num_masked_patches: int
    embed_dim: int
    depth: int
    num_images: int
    masks: Literal["blocks", "random"]
    decoder: Literal["linear", "cross-attention"] = "linear"
    channels: int = 3
    optimiser: Matrices = "adamw"

    def __post_init__(self) -> None:
        pixels, has = self.target == "pixels", "without" if self.vocab_size is None else "with"
        require(pixels == (self.vocab_size is None), f"{self.target} {has} a vocabulary")

    def distance(self, other: "Setup") -> tuple[int, float, float]:
        """The distance of two setups, to be compared lexicographically.

        First how many of four kinds differ, of masks, decoder, channels and optimiser; then Σ |ln(a / b)| over
        vocabulary size, patches, masked share and size of the backbone (depth · width²); then |ln(a / b)| of the
        lengths, since the loss decreases with the learning rate at the end of a run.
        """
        pairs = zip(self._sizes(), other._sizes(), strict=True)
        apart = sum(abs(math.log(ours / theirs)) for ours, theirs in pairs)
        kinds = sum(getattr(self, kind) != getattr(other, kind) for kind in _KINDS)
        return kinds, round(apart, 9), abs(math.log(self.num_images / other.num_images))

    def comparable(self, other: "Setup") -> bool:
        """Whether being ahead or behind means anything: the same kinds, and sizes apart by a factor of 4 in all."""
        kinds, apart, _ = self.distance(other)
        return kinds == 0 and apart <= _COMPARABLE

    def differences(self, other: "Setup") -> list[str]:
        """Descriptions of what differs, as `512 visual tokens (1024)`, with the value of `other` in parentheses."""
        named = {
            "visual tokens": (self.vocab_size, other.vocab_size),
            "patches": (self.num_patches, other.num_patches),
            "% masked": (self._percent_masked(), other._percent_masked()),
            "masks": (self.masks, other.masks),
            "decoder": (self.decoder, other.decoder),
            "optimiser": (self.optimiser, other.optimiser),
            "channels": (self.channels, other.channels),
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
    """The curve of one of our runs.

    Attributes:
        baseline: loss of a prediction that ignores the image: the unigram entropy in nats, or 1 for pixels.
        held_out_loss: loss on held-out images without augmentation at the end.
        images: images seen at each point of the curve, increasing.
        loss: training loss at each point, in nats or squared error per masked patch.
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
        require(0 < points <= MAX_POINTS, f"a reference of {points} points", f"use 1 to {MAX_POINTS}")
        require(points == len(self.loss), f"{points} numbers of images and {len(self.loss)} losses")
        rising = all(before < after for before, after in zip((0, *self.images), self.images, strict=False))
        require(rising, "numbers of images that do not rise")

    def gain(self, images: int) -> float | None:
        """Baseline minus loss after so many images; None before the first point and after the last.

        Between points it is interpolated linearly in the logarithm of the number of images.
        """
        if not self.images[0] <= images <= self.images[-1]:
            return None
        return self.baseline - float(np.interp(np.log(images), np.log(self.images), self.loss))

    @property
    def held_out_gain(self) -> float:
        """Baseline minus loss on held-out images at the end."""
        return self.baseline - self.held_out_loss


def standing(gain: float, reference: float, target: TargetName) -> str:
    """Whether a run is `ahead`, `as far` or `behind`, compared with the gain of a reference after as many images.

    `as far` means that the gains differ by at most a tenth of the reference's, or 0.1 nats (0.03 for pixels), whichever
    is greater. Losses are those of single batches: two of our runs with the same settings and different tokenizers
    differ by more at 1 of 46 points. A run that is behind may still be good: its images may be harder, or its schedule
    longer.
    """
    near = max(_NEAR[target], _NEAR_SHARE * abs(reference))
    return "as far" if abs(gain - reference) <= near else "ahead" if gain > reference else "behind"


def references() -> list[Reference]:
    """The curves of the package, in alphabetical order."""
    folder = resources.files("smalti.evaluation") / "references"
    files = [file for file in folder.iterdir() if file.name.endswith(".json")]
    found = [from_json(Reference, json.loads(file.read_text()), where=file.name) for file in files]
    return sorted(found, key=lambda reference: reference.name)


def nearest(setup: Setup, among: Iterable[Reference]) -> Reference | None:
    """The run with the same target and the nearest setup (`Setup.distance`); None where none has the same target."""
    same = [reference for reference in among if reference.setup.target == setup.target]
    return min(same, key=lambda reference: setup.distance(reference.setup), default=None)


def vocab_size_of(result: Mapping[str, Any]) -> int | None:
    """The vocabulary size V of a finished run, from the loss of a uniform prediction in its result, ln V."""
    return round(math.exp(result["bound"]["uniform_rate_nats_per_patch"])) if "bound" in result else None
