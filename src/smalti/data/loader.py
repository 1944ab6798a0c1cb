"""Sampler and loader: which images are in the batch of a step, their views and their masks."""

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from smalti.core.compute import on_device, rows_on_device
from smalti.core.config import require
from smalti.core.contracts import Batch, Grid, Masking
from smalti.core.log import Log
from smalti.core.machine import usable_processors
from smalti.core.ranks import local_world_size
from smalti.core.rng import Keys, Stream, fold, permutation, signed
from smalti.data.bad_files import BadFiles
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.load import AnyImages, Data
from smalti.data.transforms.augment import Render, channel_means, colour_matrix, mirrored, recolour, resample
from smalti.data.transforms.views import Crop, TwoViews
from smalti.data.workers.jobs import InlineRenderer, Job, Renderer, Task
from smalti.data.workers.workers import Workers
from smalti.functional.masking import draw_masks, mask_index

_MAX_WORKERS = 16


@dataclass(frozen=True, eq=False)
class SampledBatch:
    """The images of a batch, by position, and the keys from which all their randomness is drawn.

    Attributes:
        index: position of each image in its source, (B,).
        keys: random keys of masks and noise, (B,), uint64; different in every epoch.
        view_epoch, view_keys: epoch and random keys of crop, mirror and jitter, both (B,). The epoch is how often each
            image has been seen before, and the keys are `keys`, unless views are cycled.
    """

    index: NDArray[np.int64]
    keys: Keys
    view_epoch: NDArray[np.int64]
    view_keys: Keys


@dataclass(frozen=True)
class Sampler:
    """Samples images without end, one permutation after another: step s takes the images s·B to (s+1)·B.

    Every image is seen equally often, whatever the batch size.

    Attributes:
        length: number of images in the source.
        batch_size: number of images in a step, over all processes.
        part: which of how many equal parts of every batch is wanted, counted from 0; together they are the batch.
        num_views: views an image has; each is shown again every `num_views` epochs. None: a new one every epoch.
    """

    length: int
    batch_size: int
    seed: int
    part: tuple[int, int] = (0, 1)
    num_views: int | None = None

    def __post_init__(self) -> None:
        rank, world = self.part
        require(0 <= rank < world, f"part {rank} of {world}", "count parts from 0")
        require(
            self.batch_size % world == 0,
            f"a batch of {self.batch_size} images does not divide into {world} equal parts",
            f"use a multiple of {world}",
        )

    def __call__(self, step: int) -> SampledBatch:
        rank, world = self.part
        share = self.batch_size // world
        start = step * self.batch_size + rank * share
        stream = np.arange(start, start + share)
        epoch, place = stream // self.length, stream % self.length
        index = np.concatenate([_permuted(self.seed, int(e), self.length)[place[epoch == e]] for e in np.unique(epoch)])
        return self.rows(index, epoch)

    def rows(self, index: NDArray[np.int64], epoch: NDArray[np.int64]) -> SampledBatch:
        """The given images with their keys in the given epochs; both are (B,)."""
        view_epoch = epoch if self.num_views is None else epoch % self.num_views
        return SampledBatch(index, fold(self.seed, epoch, index), view_epoch, fold(self.seed, view_epoch, index))


@lru_cache(maxsize=2)
def _permuted(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return permutation(seed, epoch, length)


class Views(NamedTuple):
    """Both views of a batch, (B, C, H, W), uint8 or float in [0, 1]; the positions of its images, and their labels.

    Attributes:
        label_map: the class of every pixel, for datasets with a class per pixel.
    """

    image: Tensor
    token_image: Tensor | None
    shown: Int[Tensor, "B"]
    label: Int[Tensor, "B"]
    label_map: UInt8[Tensor, "B H W"] | None = None


@runtime_checkable
class ViewSource(Protocol):
    """Makes the views of a batch. Randomness comes only from `rows.view_keys`.

    Raises:
        DataError: too many images cannot be read.
    """

    def prefetch(self, batches: Sequence[SampledBatch]) -> None:
        """Announce the batches that will be requested next, in this order."""
        ...

    def __call__(self, rows: SampledBatch) -> Views: ...

    def close(self) -> None: ...


@dataclass
class Loader:
    """Batches whose order, views and masks depend only on the seed of the order.

    Attributes:
        masking, grid: what to mask; None where nothing is masked.
        ahead: number of batches to prefetch beyond the requested one.
        wait_seconds: seconds the caller has waited for batches to be made.
    """

    view_source: ViewSource
    order: Sampler
    masking: Masking | None = None
    grid: Grid = (0, 0)
    ahead: int = 2
    wait_seconds: float = field(default=0.0, init=False, compare=False)

    def __call__(self, step: int) -> Batch:
        began = time.perf_counter()
        self.view_source.prefetch([self.order(step + later) for later in range(self.ahead + 1)])
        batch = self.at(self.order(step))
        self.wait_seconds += time.perf_counter() - began
        return batch

    def close(self) -> None:
        self.view_source.close()

    def at(self, rows: SampledBatch) -> Batch:
        """The batch of the given images."""
        pictures = self.view_source(rows)
        batch = Batch(
            image=pictures.image,
            token_image=pictures.token_image,
            index=pictures.shown,
            key=torch.from_numpy(signed(fold(rows.keys, Stream.NOISE))),
            label=pictures.label,
            label_map=pictures.label_map,
        )
        return batch if self.masking is None else masked(batch, self.masking, fold(rows.keys, Stream.MASK), self.grid)


@dataclass(frozen=True)
class InMemoryViewSource:
    """Views of images in memory: crop, resize and mirror as two matrix products for the whole batch, on the device."""

    source: ImageDataset
    views: TwoViews
    device: torch.device = torch.device("cpu")

    def prefetch(self, batches: Sequence[SampledBatch]) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Nothing to stop."""

    def __call__(self, rows: SampledBatch) -> Views:
        chosen, views = torch.from_numpy(rows.index), self.views
        assert self.source.pixels is not None, "these images are not in memory"
        height, width = self.source.pixels.shape[-2:]
        crop = views.crop(rows.view_keys, height, width, views.size)
        # the batch has no name here, so that its memory is free once it is recoloured
        shown = views_of(rows_on_device(self.source.pixels, chosen, self.device), views, rows.view_keys, crop)
        return Views(shown[0], shown[1] if len(shown) > 1 else None, chosen, self.source.labels_at(rows.index))


def views_of(images: Tensor, views: TwoViews, keys: Keys, crop: Crop) -> list[Tensor]:
    """The patch view, and the token view where there is one, of images (B, C, H, W), which are cropped so."""
    if views.jitter_when == "before_crop":
        images = recolour(images, *colours(views, keys, images))
    shown = [resample(images, crop, views.size)]
    if views.token_size is not None:
        shown.append(resample(images, crop, views.token_size, "lanczos"))
    if views.jitter_when == "after_crop":
        change = colours(views, keys, shown[-1])
        shown = [recolour(view, *change) for view in shown]
    return shown


def colours(views: TwoViews, keys: Keys, images: Tensor) -> tuple[Tensor, Tensor]:
    """The jitter of each image: colour matrix (B, C, C) and offset (B, C, 1).

    Args:
        keys: random keys of the views, (B,).
        images: (B, C, H, W); contrast is relative to their mean grey. Of two views of a crop, the smaller suffices.
    """
    factors = on_device(torch.from_numpy(views.jitter(keys)).float(), images.device)
    return colour_matrix(factors, channel_means(images))


def masked(batch: Batch, masking: Masking, keys: Keys, grid: Grid) -> Batch:
    """The batch with the masks that are drawn from `keys`, one for each image."""
    mask = draw_masks(masking, keys, grid)
    index, weight = mask_index(mask, masking.count(grid))
    return replace(
        batch, mask=torch.from_numpy(mask), mask_index=torch.from_numpy(index), mask_weight=torch.from_numpy(weight)
    )


@dataclass(frozen=True)
class StreamedViewSource:
    """Views rendered by workers as uint8 pixels; mirror and jitter are applied to the batch on the device."""

    source: ImageDataset
    views: TwoViews
    renderer: Renderer
    bad_files: BadFiles
    device: torch.device

    def prefetch(self, batches: Sequence[SampledBatch]) -> None:
        self.renderer.prefetch([_task(rows) for rows in batches])

    def close(self) -> None:
        self.renderer.close()

    def __call__(self, rows: SampledBatch) -> Views:
        rendered = self.renderer(_task(rows))
        self.bad_files.add(rendered.bad, seen=len(rows.index))
        label = self.source.labels_at(rendered.shown)
        flip = on_device(torch.from_numpy(self.views.crop.flips(rows.view_keys)), self.device)
        shown = [on_device(torch.from_numpy(pixels), self.device) for pixels in rendered.arrays]
        if self.views.jitter_when == "after_crop":
            change = colours(self.views, rows.view_keys, shown[-1])
            shown = [recolour(view, *change, flip) for view in shown]
        else:
            shown = [mirrored(view, flip) for view in shown]
        index = torch.from_numpy(rendered.shown.copy())  # the slot of the buffer is reused
        return Views(shown[0], shown[1] if len(shown) > 1 else None, index, label)


def _task(rows: SampledBatch) -> Task:
    return Task(rows.index, rows.view_keys)


def open_view_source(
    images: AnyImages, views: TwoViews, data: Data, batch_size: int, device: torch.device
) -> ViewSource:
    """The view source of the training images.

    Args:
        batch_size: images per batch in this process.
        device: where views are computed; of streamed images mirror and jitter.
    """
    if images.bad_files is None:
        return InMemoryViewSource(images.train, views, device)
    bad = images.bad_files
    renderer = open_renderer(Render(images.train, views), data, batch_size, device, bad.log, bad.quarantined)
    return StreamedViewSource(images.train, views, renderer, bad, device)


def open_renderer(
    job: Job, data: Data, batch_size: int, device: torch.device, log: Log, quarantined: Collection[int] = ()
) -> Renderer:
    """What renders the images of a job, on worker processes or in this one.

    Args:
        batch_size: the most images of a batch.
        quarantined: positions of images that must not be opened.
    """
    num_workers = default_workers(device) if data.num_workers is None else data.num_workers
    avoid = frozenset(quarantined)
    if num_workers == 0:
        return InlineRenderer(job, quarantined=avoid)
    log.say(f"data workers: {num_workers}")
    return Workers(job, batch_size, num_workers, timeout=data.worker_timeout, quarantined=avoid, say=log.say)


def default_workers(device: torch.device) -> int:
    """Number of workers: a quarter of this process's cores where the network also needs them, else all but one.

    The processes on a machine share its cores; one that is bound to some has these.
    """
    cores = max(1, min(usable_processors(), (os.cpu_count() or 1) // local_world_size()))
    return max(1, cores // 4) if device.type == "cpu" else max(1, min(cores - 1, _MAX_WORKERS))
