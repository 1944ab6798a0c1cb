"""The batches of masked image modeling: both views of each image, a mask, and the tokens to be predicted."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from smalti.core.compute import Compute
from smalti.core.config import require
from smalti.core.contracts import Batch, Batches, BatchWrapper, Masking
from smalti.core.log import Log
from smalti.core.ranks import rank, world_size
from smalti.core.rng import Stream, fold, signed
from smalti.data.datasets.dataset import ImageDataset, InMemoryDataset
from smalti.data.load import AnyImages, Data
from smalti.data.loader import InMemoryViewSource, Loader, Sampler, masked, open_view_source
from smalti.data.token_cache import CachedTokens, TokenCache, token_key
from smalti.data.tokens import TokenizedBatches, TokenizedBySecond, chunk_for
from smalti.data.transforms.views import NO_JITTER, ColorJitter, RandomResizedCrop, TwoViews, WholeImage
from smalti.functional.patches import gather_rows
from smalti.models.vit import ViT
from smalti.tokenizers.image_tokenizer import ImageTokenizer


@dataclass(frozen=True)
class MaskedViews:
    """How masked image modeling sees images: two views of each, and a mask over the patches of the first.

    Images to learn from are cropped, in changing colours and under changing masks. Held-out images are whole, in their
    own colours, and their masks are always the same.

    Attributes:
        backbone: the patch view has its image size, a mask its grid.
        tokenizer: the token view has one of its visual tokens for each patch; None where pixels are predicted.
        seed: of order, crops, colours and masks.
        num_views: views of an image to learn from, in turn; None: a new one in every epoch.
        masks_per_image: masks of a view in a training batch, which counts each of them as one image.
        full_decode: streamed JPEGs are decoded at full size.
        fp32_tokens: the tokenizer computes in float32, whatever the rest of the run does.
        second: another tokenizer, which sees the token view too.
    """

    crop: RandomResizedCrop
    jitter: ColorJitter
    masking: Masking
    backbone: ViT
    tokenizer: ImageTokenizer | None
    seed: int
    num_views: int | None = None
    masks_per_image: int = 1
    full_decode: bool = False
    fp32_tokens: bool = False
    second: ImageTokenizer | None = None

    def tokenizing(self, compute: Compute) -> Compute:
        """Where and in which number format the tokenizer computes, in a run that computes with `compute`."""
        return replace(compute, dtype=torch.float32) if self.fp32_tokens else compute

    @property
    def num_outputs(self) -> int:
        """Width of the head: visual tokens, or the numbers in a patch."""
        if self.tokenizer is None:
            return self.backbone.in_chans * self.backbone.patch_size**2
        return self.tokenizer.vocab_size

    @property
    def training(self) -> TwoViews:
        """Of the images to learn from."""
        return self._views(self.crop, self.jitter)

    def training_loader(self, images: AnyImages, data: Data, batch_size: int, device: torch.device) -> Loader:
        """Batches of the images to learn from, without tokens; of several ranks each sees its part of them.

        With several masks per image a batch has its images once and without a mask (`MultiMaskBatches`).
        """
        num_images = batch_size // self.masks_per_image
        view_source = open_view_source(images, self.training, data, num_images // world_size(), device)
        order = Sampler(len(images.train), num_images, self.seed, (rank(), world_size()), self.num_views)
        return Loader(view_source, order, self.masking if self.masks_per_image == 1 else None, self.backbone.grid)

    def held_out_loader(self, images: InMemoryDataset, batch_size: int) -> Loader:
        """Batches of held-out images, without tokens."""
        view_source = InMemoryViewSource(images, self._views(WholeImage(), NO_JITTER))
        return Loader(view_source, Sampler(len(images), batch_size, self.seed), self.masking, self.backbone.grid)

    def held_out_batch(self, images: InMemoryDataset, index: NDArray[np.int64]) -> Batch:
        """The chosen ones of some images as held-out images are seen, without tokens."""
        loader = self.held_out_loader(images, batch_size=1)
        return loader.at(loader.order.rows(index, np.zeros_like(index)))

    def _views(self, crop: RandomResizedCrop | WholeImage, jitter: ColorJitter) -> TwoViews:
        size = self.backbone.img_size
        if self.tokenizer is None:
            return TwoViews(crop, size, None, jitter, self.full_decode)
        height, width = grid = self.backbone.grid
        for tokenizer in filter(None, (self.tokenizer, self.second)):
            channels, theirs = tokenizer.config.in_chans, tokenizer.grid or self.backbone.grid
            require(
                self.backbone.in_chans == channels,
                f"the tokenizer reads {channels} channels and data.channels is {self.backbone.in_chans}",
            )
            require(
                grid == theirs,
                f"the teacher of the tokenizer has {theirs[0]}x{theirs[1]} patches, and the backbone {height}x{width}",
                "give them the same grid: --backbone.img-size divided by --backbone.patch-size",
            )
            require(
                tokenizer.stride == self.tokenizer.stride,
                f"the tokenizers have strides of {self.tokenizer.stride} and {tokenizer.stride} pixels",
                "use two that see images of the same size",
            )
        token_size = (height * self.tokenizer.stride, width * self.tokenizer.stride)
        return TwoViews(crop, size, None if token_size == size else token_size, jitter, self.full_decode)


@dataclass(frozen=True)
class MultiMaskBatches(BatchWrapper):
    """Batches of images under `count` masks each: every image appears `count` times in a row, tokenized once.

    Each appearance has a key of its own, from which its mask and its noise are drawn.

    Reference: Baevski et al. 2022 (data2vec 2.0), §3.2.

    Attributes:
        batches: the images once, without a mask; `scores`, where there are any, are those of all N patches.
        order: which images these are; keys are drawn from it and not read from the device of the batch.
    """

    batches: Batches
    order: Sampler
    count: int
    views: MaskedViews

    def __call__(self, step: int) -> Batch:
        """The batch of one step."""
        once = self.batches(step)
        keys = fold(fold(self.order(step).keys, Stream.NOISE)[:, None], np.arange(self.count)).reshape(-1)
        batch = masked(once.repeated(self.count), self.views.masking, fold(keys, Stream.MASK), self.views.backbone.grid)
        batch = replace(batch, key=torch.from_numpy(signed(fold(keys, Stream.NOISE)))).to(once.image.device)
        return batch if batch.scores is None else replace(batch, scores=gather_rows(batch.scores, batch.masks[1]))


def training_batches(
    views: MaskedViews,
    images: AnyImages,
    data: Data,
    batch_size: int,
    compute: Compute,
    log: Log,
    *,
    posterior: bool = False,
    token_cache: str = "",
) -> Batches:
    """Batches to learn from with what is to be predicted: visual tokens; pixels are in them already.

    Args:
        posterior: also the scores of all visual tokens at masked patches.
        token_cache: a folder that keeps visual tokens; empty: none.
    """
    tokenizer, num_images, cache = views.tokenizer, batch_size // views.masks_per_image, None
    tokenizing = views.tokenizing(compute)
    if tokenizer is not None and token_cache:
        cache = open_cache(Path(token_cache).expanduser(), views, images.train, tokenizer, num_images, compute)
    loader = views.training_loader(images, data, batch_size, compute.device)
    batches: Batches = loader
    if tokenizer is not None and cache is not None:
        batches = CachedTokens(loader, tokenizer, tokenizing, cache, log)
    elif tokenizer is not None:
        batches = TokenizedBatches(loader, tokenizer, tokenizing, chunk_for(num_images), posterior)
    if views.second is not None:
        batches = TokenizedBySecond(batches, views.second, tokenizing, chunk_for(num_images))
    return (
        batches if views.masks_per_image == 1 else MultiMaskBatches(batches, loader.order, views.masks_per_image, views)
    )


def open_cache(
    folder: Path, views: MaskedViews, images: ImageDataset, tokenizer: ImageTokenizer, batch_size: int, compute: Compute
) -> TokenCache:
    """The token cache in `folder`, for these views of the images to learn from, in runs with so many in a batch.

    Raises:
        DataError: it is there for other views; the message names all that differs.
    """
    key = token_key(images, views.training, views.seed, tokenizer, views.tokenizing(compute), chunk_for(batch_size))
    return TokenCache(folder, key)
