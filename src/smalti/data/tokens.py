"""The targets of masked image modeling: visual tokens written into the batch, outside model and objective."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Tokenizer


@dataclass(frozen=True)
class Tokenized:
    """Batches with `ids`, from a frozen tokenizer that looks at the token view of each crop."""

    batches: Callable[[int], Batch]
    tokenizer: Tokenizer
    compute: Compute

    @torch.no_grad()
    def __call__(self, step: int) -> Batch:
        batch = self.batches(step).to(self.compute.device)
        view = batch.image if batch.token_image is None else batch.token_image
        with self.compute.autocast():
            ids = self.tokenizer.encode(view).flatten(1)
        return replace(batch, ids=ids)
