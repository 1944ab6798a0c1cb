"""The types and protocols that all parts share.

Axes, everywhere: `B` images, `C` channels, `H W` pixels, `h w` token grid, `N` = h·w patches, `K` the most masked
patches an image has, `S` = N + 1 positions with [S], `D` width, `V` codebook size. A mask is True where a patch is
masked, flat and row-major.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from smalti.core.compute import on_device
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
        wait_seconds: seconds spent waiting for images so far.
    """

    @property
    def wait_seconds(self) -> float: ...

    def __call__(self, step: int) -> "Batch": ...

    def close(self) -> None:
        """Stop background threads and processes; no batch may be requested afterwards."""
        ...


class BatchWrapper:
    """Base of batches that are made from other batches, those in `batches`."""

    batches: Batches

    @property
    def wait_seconds(self) -> float:
        return self.batches.wait_seconds

    def close(self) -> None:
        self.batches.close()


@dataclass(frozen=True)
class Batch:
    """The images of a step of training or evaluation, and what is known about them. Absent parts are None.

    Attributes:
        image: the backbone's view, uint8 or float in [0, 1]; every model normalises its input itself.
        index: position of each image in its dataset; for an unreadable image, that of its replacement.
        key: one 64-bit key per image; all noise of the step (Gumbel, drop path) is a function of it.
        token_image: the tokenizer's view of the same crop; None where it is `image` itself.
        ids: the visual token of every patch, in [0, V).
        second_ids: those of a second tokenizer, which are predicted too.
        mask: True where a patch is masked.
        mask_index: positions of the masked patches in [0, N), padded to K.
        mask_weight: 1 at a masked patch, 0 at padding.
        scores: the tokenizer's logits over the V visual tokens at `mask_index`, for soft targets.
        label: class of each image.
        target: what a classifier should predict where that is not one class: in [0, 1] for each class, NaN: not known.
        label_map: class of each pixel, or void (`functional/metrics.py`).
    """

    image: UInt8[Tensor, "B C H W"] | Float[Tensor, "B C H W"]
    index: Int[Tensor, "B"]
    key: Int[Tensor, "B"]
    token_image: UInt8[Tensor, "B C h w"] | Float[Tensor, "B C h w"] | None = None
    ids: Int[Tensor, "B N"] | None = None
    second_ids: Int[Tensor, "B N"] | None = None
    mask: Bool[Tensor, "B N"] | None = None
    mask_index: Int[Tensor, "B K"] | None = None
    mask_weight: Float[Tensor, "B K"] | None = None
    scores: Float[Tensor, "B K V"] | None = None
    label: Int[Tensor, "B"] | None = None
    target: Float[Tensor, "B classes"] | None = None
    label_map: UInt8[Tensor, "B H W"] | None = None

    @property
    def masks(self) -> tuple[Bool[Tensor, "B N"], Int[Tensor, "B K"], Float[Tensor, "B K"]]:
        """`mask`, `mask_index` and `mask_weight` of a batch that has masks."""
        assert self.mask is not None and self.mask_index is not None and self.mask_weight is not None  # noqa: PT018
        return self.mask, self.mask_index, self.mask_weight

    @property
    def tokens(self) -> Int[Tensor, "B N"]:
        """`ids` of a batch that has visual tokens."""
        assert self.ids is not None
        return self.ids

    @property
    def token_view(self) -> Tensor:
        """The view that the tokenizer encodes."""
        return self.image if self.token_image is None else self.token_image

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`, see `on_device`."""
        return replace(self, **{name: on_device(value, device) for name, value in self._present().items()})

    def split(self, parts: int) -> "list[Batch]":
        """The batch as `parts` micro-batches of equal size, in order, without a copy; `parts` divides B."""
        share = len(self.image) // parts
        slices = [slice(start, start + share) for start in range(0, len(self.image), share)]
        return [replace(self, **{name: value[some] for name, value in self._present().items()}) for some in slices]

    def repeated(self, count: int) -> "Batch":
        """The batch with every image `count` times, one after another."""
        return replace(self, **{name: value.repeat_interleave(count, 0) for name, value in self._present().items()})

    def _present(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


class Features(NamedTuple):
    """The output of a backbone.

    Attributes:
        cls: the last hidden state of [S], with the final norm applied.
        patches: the last hidden states of the patches, with the final norm applied.
        layers: if requested, the output of every block ([S] first, then patches), without the final norm.
    """

    cls: Float[Tensor, "B D"]
    patches: Float[Tensor, "B N D"]
    layers: tuple[Float[Tensor, "B S D"], ...] = ()


@runtime_checkable
class Tokenizer(Protocol):
    """Images to visual tokens and back. It normalises images itself; h = H / stride, w = W / stride."""

    vocab_size: int
    stride: int

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The most likely visual token at every position, in [0, V)."""
        ...

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The images that the tokens decode to, in [0, 1]."""
        ...


@runtime_checkable
class Masking(Protocol):
    """Draws one mask per key on a grid, as `len(keys) x N` booleans, True where masked.

    Attributes:
        constant: whether every mask covers as many patches as `count` says.
    """

    constant: ClassVar[bool]

    def __call__(self, keys: Keys, grid: Grid) -> NDArray[np.bool_]: ...

    def count(self, grid: Grid) -> int:
        """K: the most patches that a mask covers on this grid."""
        ...


class StepOutput(NamedTuple):
    """Loss and metrics of a batch, as sums and counts.

    The training loop divides the sum of `loss_sum` by the sum of `weight` over all micro-batches of a step, so the mean
    is exact where their counts differ. Each metric is a (sum, count) pair for the same reason.
    """

    loss_sum: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    metrics: Mapping[str, tuple[Tensor, Tensor]]


@runtime_checkable
class Target(Protocol):
    """The loss of masked image modeling at masked patches; what is to be predicted is already in the batch."""

    def __call__(
        self, predicted: Float[Tensor, "B K V"], batch: Batch, weight: Float[Tensor, "B K"], with_metrics: bool = True
    ) -> StepOutput:
        """The loss of the head's output at `mask_index`, summed with `weight`, which is 0 at padding."""
        ...


class Objective(nn.Module):
    """A module whose forward turns a batch into a loss.

    Attributes:
        model: what is trained, averaged (EMA) and saved.
        with_metrics: whether metrics are needed in training; otherwise those that take time may be left out.
        whole_batches: whether a step needs all images of its batch at once, so that micro-batches are refused.
    """

    model: nn.Module
    with_metrics: bool = True
    whole_batches: bool = False

    def forward(self, batch: Batch, step: Int[Tensor, ""]) -> StepOutput:
        """Loss and metrics; schedules (temperature, KL weight) are functions of `step`, so they need no state."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called after each optimiser step: update what has no gradient, such as an EMA codebook.

        Args:
            step: number of optimiser steps done.
        """
