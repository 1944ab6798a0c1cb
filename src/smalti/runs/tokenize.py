"""`smalti tokenize`: compute the visual tokens of a pretraining run, and of similar runs, in advance."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smalti.core.compute import Compute, choose_compute
from smalti.core.config import leaves, require, setting
from smalti.core.contracts import Batch
from smalti.core.files import require_place
from smalti.core.log import Log
from smalti.core.ranks import rank, world_size
from smalti.data.loader import Loader
from smalti.data.token_cache import BAD_FILES, TokenCache
from smalti.data.tokens import encode
from smalti.distributed.collectives import broadcast_precision, require_same
from smalti.distributed.process_group import barrier, process_group
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.tokenizers import load_tokenizer, tokenizer_data
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.training.masked_batches import open_cache
from smalti.training.targets import Tokens

_BLOCK = 256
"""Images at a time: whole chunks of the tokenizer, and little to lose when the process is killed."""


@dataclass(frozen=True)
class Tokenize(Pretrain):
    """The run that the cache is for: it has the flags of `smalti pretrain`, so that both see the same views.

    What does not change a view (optimiser, masks, the size of the network) may differ. The cache is written to
    `token_cache`, or to `out` where that is empty.
    """

    epochs: int | None = setting(None, "epochs of views to compute; none: num_views, or 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.target, Tokens), "a token cache holds the most likely tokens", "use --target tokens")
        require(self.epochs is None or self.epochs >= 1, f"epochs is {self.epochs}", "use at least 1")
        require(
            self.num_views is None or self.num_epochs <= self.num_views,
            f"{self.epochs} epochs of {self.num_views} views",
            f"use --epochs {self.num_views} or less: later ones are the same again",
        )

    @property
    def folder(self) -> Path:
        return Path(self.token_cache or self.out).expanduser()

    @property
    def num_epochs(self) -> int:
        """The number of views wanted of each image."""
        return self.epochs or self.num_views or 1


def main(config: Tokenize, *, compute: Compute | None = None) -> dict[str, Any]:
    """Compute the missing tokens. It may be interrupted at any time and continues when called again.

    Raises:
        DataError: the folder contains something else, or a cache that does not match.
        OutputError: it cannot be written.
    """
    require(bool(config.token_cache or config.out), "no folder for the visual tokens", "use --out CACHE")
    require(bool(config.tokenizer), "no tokenizer given", "give --tokenizer RUN, the folder of smalti train-tokenizer")
    require_place(config.folder)
    log = Log()
    with process_group(config.ranks, config.device):
        require_same("configuration", {field.name: field.value for field in leaves(config)})
        compute = broadcast_precision(choose_compute(config.device, config.precision)) if compute is None else compute
        tokenizer = load_tokenizer(config.tokenizer, compute)
        config = config.with_window(log, tokenizer_data(config.tokenizer, tokenizer).window, config.tokenizer)
        images = config.data.open(log, config.folder / BAD_FILES)
        views = replace(config.views(tokenizer), masks_per_image=1)
        size = config.plan.batch_size // config.masks_per_image
        with (
            closing(open_cache(config.folder, views, images.train, tokenizer, size, compute)) as cache,
            closing(views.training_loader(images, config.data, world_size() * _BLOCK, compute.device)) as loader,
        ):
            began = time.perf_counter()
            filler = CacheFiller(cache, loader, tokenizer, views.tokenizing(compute))
            filler.fill(config.num_epochs, log)
            result = filler.result(config.num_epochs, time.perf_counter() - began)
    log.say(describe(result))
    return result


class CacheFiller:
    """Fills a cache and counts the views; of several processes each computes a part of every block.

    Attributes:
        already: views whose ids were in the cache.
        computed: views whose ids were added.
        unreadable: views of images that cannot be read; a run shows others instead and tokenises those live.
    """

    def __init__(self, cache: TokenCache, loader: Loader, tokenizer: ImageTokenizer, compute: Compute) -> None:
        self.cache, self.loader, self.tokenizer, self.compute = cache, loader, tokenizer, compute
        self.already = self.computed = self.unreadable = 0

    def fill(self, num_epochs: int, log: Log) -> None:
        """Compute the missing ids of the first epochs."""
        images = self.cache.key.num_images
        with log.progress("tokenize", images * num_epochs) as bar:
            for epoch in range(num_epochs):
                missing = self.cache.missing(epoch)
                barrier()  # else another process would have filled some before this one has looked
                done = images * epoch + images - len(missing)
                for wanted, block, batch in _batches(self.loader, epoch, missing):
                    self._add(epoch, block, batch)
                    done += wanted
                    bar.update(done, f"epoch {epoch}")
                barrier()
                self._count(epoch, len(missing))

    def result(self, num_epochs: int, seconds: float) -> dict[str, Any]:
        """What was done, as plain JSON values. `bytes` is the size of all rows in the cache."""
        key, views = self.cache.key, self.already + self.computed
        return {
            "cache": str(self.cache.folder),
            "images": key.num_images,
            "views": num_epochs,
            "tokens": views * key.num_patches,
            "bytes": views * self.cache.row_bytes,
            "seconds": round(seconds, 3),
            "images_per_second": round(self.computed / seconds, 1),
            "already_there": self.already,
            "computed": self.computed,
            "unreadable": self.unreadable,
        }

    def _count(self, epoch: int, missing: int) -> None:
        """Count the views of an epoch, of which so many were missing before."""
        self.cache.close()  # files are opened again, so that what other machines have written is seen
        left = len(self.cache.missing(epoch)) if missing else 0
        self.already += self.cache.key.num_images - missing
        self.computed += missing - left
        self.unreadable += left

    def _add(self, epoch: int, block: NDArray[np.int64], batch: Batch) -> None:
        as_asked = batch.index.numpy() == block
        ids = encode(batch.token_view, self.tokenizer, self.compute, self.cache.key.chunk).cpu().numpy()
        kept = block[as_asked]
        self.cache.store(np.full_like(kept, epoch), kept, ids[as_asked])


def describe(result: dict[str, Any]) -> str:
    """One line."""
    views = "view" if result["views"] == 1 else "views"
    done = (
        f"{result['computed']} computed at {result['images_per_second']:.0f} a second, {result['already_there']} there"
        if result["computed"]
        else "all there"
    )
    return f"{result['cache']}: {result['views']} {views} of {result['images']} images, {done}"


def _batches(
    loader: Loader, epoch: int, positions: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64], Batch]]:
    """Yield this process's part of each block of the images at `positions`, with their views in an epoch.

    With each comes how many images the whole block has. Processes tell each other what cannot be read, so all have as
    many parts: where a block has fewer images than there are processes, some do its first image once more.
    """
    step = world_size() * _BLOCK
    wholes = [positions[start : start + step] for start in range(0, len(positions), step)]
    parts = (np.array_split(whole, world_size())[rank()] for whole in wholes)
    blocks = [part if len(part) else whole[:1] for part, whole in zip(parts, wholes, strict=True)]
    rows = [loader.order.rows(block, np.full_like(block, epoch)) for block in blocks]
    for number, (whole, block) in enumerate(zip(wholes, blocks, strict=True)):
        loader.view_source.prefetch(rows[number : number + 1 + loader.ahead])
        yield len(whole), block, loader.at(rows[number])
