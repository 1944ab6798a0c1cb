"""Visual tokens from a cache where they are there, live where they are not."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Int

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Tokenizer
from smalti.core.errors import OutputError
from smalti.core.log import Log
from smalti.data.loader import Loader
from smalti.data.sampler import SampledBatch
from smalti.data.tokens.token_cache import TokenCache
from smalti.data.tokens.tokens import encode, token_view


@dataclass
class CachedTokens:
    """Batches with `ids`, equal bit for bit to those of `Tokenized`. What is missing is computed and kept.

    Where the cache cannot be written, that is said once and the run goes on.
    """

    loader: Loader
    tokenizer: Tokenizer
    compute: Compute
    cache: TokenCache
    log: Log = field(default_factory=Log)
    _writable: bool = field(default=True, init=False)

    def __call__(self, step: int) -> Batch:
        """The batch of one step.

        Raises:
            DataError: the cache is damaged.
        """
        return self.with_ids(self.loader(step), self.loader.order(step))

    @property
    def waited(self) -> float:
        """Seconds spent until images were there; reading or computing their tokens does not count."""
        return self.loader.waited

    def close(self) -> None:
        """End what works in the background."""
        self.loader.close()
        self.cache.close()

    def with_ids(self, batch: Batch, rows: SampledBatch) -> Batch:
        """The batch of the given images, on the device."""
        ids, present = self.cache.lookup(rows.view_epoch, rows.index)
        as_asked = batch.index.numpy() == rows.index  # not another image in the place of an unreadable one
        if missing := np.flatnonzero(~(present & as_asked)).tolist():
            view = token_view(batch)[missing].to(self.compute.device)
            found = encode(view, self.tokenizer, self.compute, self.cache.key.chunk)
            ids[missing] = found.cpu().numpy()
            kept = [row for row in missing if as_asked[row]]
            self._keep(rows.view_epoch[kept], rows.index[kept], ids[kept])
        return replace(batch.to(self.compute.device), ids=torch.from_numpy(ids).to(self.compute.device))

    def _keep(self, view_epoch: Int[np.ndarray, "B"], index: Int[np.ndarray, "B"], ids: Int[np.ndarray, "B N"]) -> None:
        if not self._writable:
            return
        try:
            self.cache.store(view_epoch, index, ids)
        except OutputError as error:
            self._writable = False
            self.log.say(f"{error}; visual tokens are not kept any more, the run goes on")
