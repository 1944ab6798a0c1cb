"""The targets of masked image modeling: visual tokens written into the batch, outside model and objective."""

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Batches, Tokenizer

CHUNK = 64
"""Images that a tokenizer is given at a time, where there are that many."""

_SCORED = 16
"""Images whose scores are held at all positions, V a position, before those of masked patches are picked."""


@runtime_checkable
class Scorer(Tokenizer, Protocol):
    """A tokenizer that has a posterior: q(z|x) = softmax of its scores."""

    def logits(self, images: Tensor) -> Float[Tensor, "B V h w"]:
        """Scores of every visual token at every position."""
        ...


def chunk_for(batch_size: int) -> int:
    """Images that a tokenizer is given at a time in a run with such batches."""
    return min(CHUNK, batch_size)


@torch.no_grad()
def encode(view: Tensor, tokenizer: Tokenizer, compute: Compute, chunk: int = CHUNK) -> Int[Tensor, "B N"]:
    """The visual tokens of images on the device, B C H W.

    The tokenizer always sees `chunk` of them, the last one repeated: sums are then made in one order, whatever the size
    of the batch, and so ids can be kept and used in other batches.
    """
    with compute.autocast():
        return torch.cat([tokenizer.encode(_filled(part, chunk)).flatten(1)[: len(part)] for part in view.split(chunk)])


@torch.no_grad()
def scored(
    view: Tensor, tokenizer: Scorer, index: Int[Tensor, "B K"], compute: Compute
) -> tuple[Int[Tensor, "B N"], Float[Tensor, "B K V"]]:
    """The visual tokens of images on the device, and the scores of all of them at the positions `index`."""
    ids, scores = [], []
    for part, masked in zip(view.split(_SCORED), index.split(_SCORED), strict=True):
        with compute.autocast():
            logits = tokenizer.logits(_filled(part, min(_SCORED, len(view)))).flatten(2)[: len(part)]
        ids.append(logits.argmax(1))
        scores.append(logits.gather(2, masked[:, None].expand(-1, logits.shape[1], -1)).transpose(1, 2))
    return torch.cat(ids), torch.cat(scores)


def token_view(batch: Batch) -> Tensor:
    """What the tokenizer looks at."""
    return batch.image if batch.token_image is None else batch.token_image


def tokenized(batch: Batch, tokenizer: Tokenizer, compute: Compute, chunk: int = CHUNK) -> Batch:
    """The batch on the device, with the `ids` that a frozen tokenizer finds in the token view of each crop."""
    batch = batch.to(compute.device)
    return replace(batch, ids=encode(token_view(batch), tokenizer, compute, chunk))


def with_scores(batch: Batch, tokenizer: Scorer, compute: Compute) -> Batch:
    """The same, and with the `scores` of its masked patches."""
    batch = batch.to(compute.device)
    assert batch.mask_index is not None
    ids, scores = scored(token_view(batch), tokenizer, batch.mask_index, compute)
    return replace(batch, ids=ids, scores=scores)


@dataclass(frozen=True)
class Tokenized:
    """Batches with `ids`, and with `scores` where the tokenizer is to be asked for its posterior."""

    batches: Batches
    tokenizer: Tokenizer
    compute: Compute
    chunk: int = CHUNK
    posterior: bool = False

    def __call__(self, step: int) -> Batch:
        """The batch of one step."""
        if self.posterior:
            assert isinstance(self.tokenizer, Scorer)
            return with_scores(self.batches(step), self.tokenizer, self.compute)
        return tokenized(self.batches(step), self.tokenizer, self.compute, self.chunk)

    @property
    def waited(self) -> float:
        """Seconds spent until images were there; tokenizing them does not count."""
        return self.batches.waited

    def close(self) -> None:
        """End what works in the background."""
        self.batches.close()


@dataclass(frozen=True)
class TokenizedOnce(Tokenized):
    """The same, where batches are asked for again: their ids are kept, and the tokenizer works once."""

    kept: dict[int, Tensor] = field(default_factory=dict, compare=False)

    def __call__(self, step: int) -> Batch:
        """The batch of one step."""
        if step in self.kept:
            return replace(self.batches(step), ids=self.kept[step]).to(self.compute.device)
        batch = super().__call__(step)
        assert batch.ids is not None
        self.kept[step] = batch.ids.cpu()
        return batch


def _filled(part: Tensor, chunk: int) -> Tensor:
    """The images, and the last one again until there are `chunk`."""
    wanting = chunk - len(part)
    return torch.cat([part, part[-1:].expand(wanting, -1, -1, -1)]) if wanting else part
