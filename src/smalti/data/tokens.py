"""The targets of masked image modeling: visual tokens written into the batch, outside model and objective."""

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.config import require
from smalti.core.contracts import Batch, Batches, BatchWrapper, Tokenizer
from smalti.functional.patches import gather_rows

CHUNK = 64
"""Images that a tokenizer is given at a time, where there are that many."""

_SCORED = 16
"""Images whose scores are held at all positions, V a position, before those of masked patches are picked."""


@runtime_checkable
class Scorer(Tokenizer, Protocol):
    """A tokenizer with a posterior: q(z|x) = softmax of its scores."""

    def logits(self, images: Tensor) -> Float[Tensor, "B V h w"]:
        """Scores of every visual token at every position, for images (B, C, H, W)."""
        ...


def chunk_for(batch_size: int) -> int:
    """Number of images given to a tokenizer at a time in a run with this batch size."""
    return min(CHUNK, batch_size)


@torch.no_grad()
def encode(view: Tensor, tokenizer: Tokenizer, compute: Compute, chunk: int = CHUNK) -> Int[Tensor, "B N"]:
    """The visual tokens of images (B, C, H, W), on the device.

    The tokenizer is always given `chunk` images, padded by repeating the last one: sums are then in the same order for
    every batch size, so that ids can be cached and used in other batches.

    Raises:
        UsageError: the tokenizer returns something else than a token for each of its strides.
    """
    with compute.autocast():
        parts = (part.to(compute.device) for part in view.split(chunk))
        return torch.cat([_ids(_filled(part, chunk), tokenizer)[: len(part)] for part in parts])


def _ids(view: Tensor, tokenizer: Tokenizer) -> Int[Tensor, "B N"]:
    ids = tokenizer.encode(view)
    _require_grid(ids, (len(view),), torch.int64, view, tokenizer)
    return ids.flatten(1)


def _logits(view: Tensor, tokenizer: Scorer) -> Float[Tensor, "B V N"]:
    logits = tokenizer.logits(view)
    _require_grid(logits, tuple(logits.shape[:2]), logits.dtype, view, tokenizer)
    return logits.flatten(2)


def _require_grid(
    found: Tensor, before: tuple[int, ...], dtype: torch.dtype, view: Tensor, tokenizer: Tokenizer
) -> None:
    """Check that there is something for each stride of the images, behind the dimensions `before`."""
    (height, width), stride, name = view.shape[-2:], tokenizer.stride, type(tokenizer).__name__
    shape = (*before, height // stride, width // stride)
    require(
        tuple(found.shape) == shape and found.dtype == dtype,
        f"{name} makes {found.dtype} {tuple(found.shape)} of {len(view)} images of {height}x{width}",
        f"return {str(dtype).removeprefix('torch.')} {shape}: a token for each {stride} x {stride} pixels, its stride",
    )


@torch.no_grad()
def scored(
    view: Tensor, tokenizer: Scorer, index: Int[Tensor, "B K"] | None, compute: Compute
) -> tuple[Int[Tensor, "B N"], Float[Tensor, "B K V"]]:
    """The visual tokens of images (B, C, H, W) on the device, and the scores of the vocabulary at positions `index`.

    Args:
        index: positions in [0, N); None: all, in order.
    """
    ids, scores = [], []
    for start in range(0, len(view), _SCORED):
        part = view[start : start + _SCORED]
        with compute.autocast():
            logits = _logits(_filled(part, min(_SCORED, len(view))), tokenizer)[: len(part)]
        ids.append(logits.argmax(1))
        by_position = logits.transpose(1, 2)
        scores.append(by_position if index is None else gather_rows(by_position, index[start : start + _SCORED]))
    return torch.cat(ids), torch.cat(scores)


def tokenized(batch: Batch, tokenizer: Tokenizer, compute: Compute, chunk: int = CHUNK) -> Batch:
    """The batch on the device, with the `ids` of the token view from a frozen tokenizer."""
    batch = batch.to(compute.device)
    return replace(batch, ids=encode(batch.token_view, tokenizer, compute, chunk))


@dataclass(frozen=True)
class TokenizedBatches(BatchWrapper):
    """Batches with `ids`, for a posterior also with `scores` of the masked patches; without a mask, of all."""

    batches: Batches
    tokenizer: Tokenizer
    compute: Compute
    chunk: int = CHUNK
    posterior: bool = False

    def __call__(self, step: int) -> Batch:
        if not self.posterior:
            return tokenized(self.batches(step), self.tokenizer, self.compute, self.chunk)
        assert isinstance(self.tokenizer, Scorer)
        batch = self.batches(step).to(self.compute.device)
        ids, scores = scored(batch.token_view, self.tokenizer, batch.mask_index, self.compute)
        return replace(batch, ids=ids, scores=scores)


@dataclass(frozen=True)
class TokenizedOnce(TokenizedBatches):
    """As `TokenizedBatches`, for batches that are requested repeatedly: ids are kept, so each is tokenized once."""

    kept: dict[int, Tensor] = field(default_factory=dict, compare=False)

    def __call__(self, step: int) -> Batch:
        if step in self.kept:
            return replace(self.batches(step), ids=self.kept[step]).to(self.compute.device)
        batch = super().__call__(step)
        assert batch.ids is not None
        self.kept[step] = batch.ids.cpu()
        return batch


@dataclass(frozen=True)
class TokenizedBySecond(TokenizedBatches):
    """Batches with the `second_ids` of another tokenizer, which sees the same view."""

    def __call__(self, step: int) -> Batch:
        batch = self.batches(step).to(self.compute.device)
        return replace(batch, second_ids=encode(batch.token_view, self.tokenizer, self.compute, self.chunk))


def _filled(part: Tensor, chunk: int) -> Tensor:
    """The images, padded to `chunk` by repeating the last one."""
    wanting = chunk - len(part)
    return torch.cat([part, part[-1:].expand(wanting, -1, -1, -1)]) if wanting else part
