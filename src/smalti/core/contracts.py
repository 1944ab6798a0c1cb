"""The few types every part agrees on.

Axes, everywhere: `B` images, `C` channels, `H W` pixels, `h w` token grid, `N` = h·w patches, `K` masked patches an
image at most, `D` width, `V` codebook size. A mask is True where a patch is masked, flat and row-major.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from smalti.core.rng import Keys

Grid: TypeAlias = tuple[int, int]
"""Rows and columns of patches."""


class Sample(NamedTuple):
    """One image of a dataset: `image` is H W C uint8 with C = 1 or 3; `label` is -1 where there is none.

    Attributes:
        label_map: H W uint8, the class of each pixel, or VOID; where pixels have classes and the image its full size.
    """

    image: NDArray[np.uint8]
    label: int
    key: str
    label_map: NDArray[np.uint8] | None = None


@runtime_checkable
class Batches(Protocol):
    """The batch of each step, counted from 0.

    Attributes:
        waited: seconds spent so far until images were there.
    """

    @property
    def waited(self) -> float: ...

    def __call__(self, step: int) -> "Batch": ...

    def close(self) -> None:
        """End what works in the background; nothing may be asked for afterwards."""
        ...


@dataclass(frozen=True)
class Batch:
    """What a step of training or evaluation sees.

    Attributes:
        image: the patch view, uint8 or float in [0, 1]; every model normalises for itself.
        index: position of each image in its source; that of another one where the image in turn cannot be read.
        key: a 64-bit key an image; all noise of the step (Gumbel, drop path) is a function of it.
        token_image: the tokenizer's view of the same crop; None where it is `image` itself.
        ids: visual tokens of every patch.
        scores: the tokenizer's scores of every visual token at the masked patches, where those are asked for.
        mask: True where a patch is masked.
        mask_index, mask_weight: the mask in static shape: positions of masked patches, padded with weight 0.
        label: class of each image.
        target: what a classifier is to say, where that is not one class: shares of all classes.
        label_map: class of each pixel, or void (`functional/pixel_classes.py`).
    """

    image: UInt8[Tensor, "B C H W"] | Float[Tensor, "B C H W"]
    index: Int[Tensor, "B"]
    key: Int[Tensor, "B"]
    token_image: UInt8[Tensor, "B C h w"] | Float[Tensor, "B C h w"] | None = None
    ids: Int[Tensor, "B N"] | None = None
    mask: Bool[Tensor, "B N"] | None = None
    mask_index: Int[Tensor, "B K"] | None = None
    mask_weight: Float[Tensor, "B K"] | None = None
    scores: Float[Tensor, "B K V"] | None = None
    label: Int[Tensor, "B"] | None = None
    target: Float[Tensor, "B classes"] | None = None
    label_map: UInt8[Tensor, "B H W"] | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`; the copy does not wait where the memory is pinned."""
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in self._present().items()})

    def split(self, parts: int) -> "list[Batch]":
        """Views of `parts` equal parts, in order. Their number divides that of the images."""
        share = len(self.image) // parts
        slices = [slice(start, start + share) for start in range(0, len(self.image), share)]
        return [replace(self, **{name: value[some] for name, value in self._present().items()}) for some in slices]

    def _present(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


class Features(NamedTuple):
    """What a backbone makes of an image.

    Attributes:
        cls: the special token's last hidden state, final norm applied.
        patches: the patches' last hidden states, final norm applied.
        layers: where asked for, the output of every block ([S] first, then patches), without the final norm.
    """

    cls: Float[Tensor, "B D"]
    patches: Float[Tensor, "B N D"]
    layers: tuple[Float[Tensor, "B S D"], ...] = ()


@runtime_checkable
class Backbone(Protocol):
    """A Transformer over patches. It never sees a mask: masking patches happens between `embed` and `encode`."""

    patch_size: int
    embed_dim: int

    def embed(self, images: Tensor) -> Float[Tensor, "B N D"]:
        """Project patches to width D."""
        ...

    def encode(self, tokens: Float[Tensor, "B N D"], grid: Grid, *, layers: bool = False) -> Features:
        """Add positions and [S], run the blocks."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Images to visual tokens and back. It normalises images itself."""

    vocab_size: int
    stride: int

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The most likely visual token at every position."""
        ...

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The image that the tokens stand for, in [0, 1]."""
        ...


@runtime_checkable
class Masking(Protocol):
    """Draws masks: one for each key, on a grid, as `len(keys) x N` booleans."""

    def __call__(self, keys: Keys, grid: Grid) -> NDArray[np.bool_]: ...

    def count(self, grid: Grid) -> int:
        """The most patches a mask covers on this grid."""
        ...


class StepOutput(NamedTuple):
    """What an objective says about a batch.

    The loop divides `loss_sum` by `weight` summed over all micro-batches of the step, so the mean is exact under
    unequal counts. Each metric is a (sum, count) pair for the same reason.
    """

    loss_sum: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    metrics: Mapping[str, tuple[Tensor, Tensor]]


@runtime_checkable
class Target(Protocol):
    """What masked image modeling predicts at masked patches. What it needs to know has been written into the batch."""

    def __call__(self, predicted: Float[Tensor, "B K V"], batch: Batch, weight: Float[Tensor, "B K"]) -> StepOutput:
        """The cost of what the head says at `mask_index`; the loss is summed with `weight`, which is 0 at padding."""
        ...


class Objective(nn.Module):
    """A module whose forward turns a batch into a loss. `model` is what is trained, averaged, saved and handed on."""

    model: nn.Module

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        """`step` lets schedules (temperature, KL weight) live in the objective without any state."""
        raise NotImplementedError


@runtime_checkable
class Evaluation(Protocol):
    """Measures a model while it trains, every so many steps and at the end; it changes nothing of it."""

    @property
    def every(self) -> int: ...

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """Figures of the weights as they are now."""
        ...


Schedule: TypeAlias = Callable[[int], float]
"""A value for each optimiser step."""
