"""From a source to batches. A batch is a pure function of the step: there is nothing to save and nothing to restore."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from smalti.core.contracts import Batch, Grid, Masking
from smalti.core.rng import Keys, Stream, fold, signed
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.sampler import SampledBatch, Sampler
from smalti.data.transforms.augment import resample
from smalti.data.transforms.colour import channel_means, colour_matrix, recolour
from smalti.data.transforms.views import TwoViews
from smalti.functional.masking import mask_index


class Stopwatch:
    """Adds up the time spent inside `with`.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds, self._began = 0.0, 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


class Views(NamedTuple):
    """Both views of a batch, B C H W, uint8 or float in [0, 1]; which images are shown, and their labels.

    Attributes:
        label_map: the class of every pixel, where classes are those of pixels.
    """

    image: Tensor
    token_image: Tensor | None
    shown: Int[Tensor, "B"]
    label: Int[Tensor, "B"]
    label_map: UInt8[Tensor, "B H W"] | None = None


@runtime_checkable
class ViewSource(Protocol):
    """Shows images. Randomness comes from `rows.view_keys` alone."""

    def prefetch(self, batches: Sequence[SampledBatch]) -> None:
        """These are going to be asked for next, in this order."""
        ...

    def __call__(self, rows: SampledBatch) -> Views: ...

    def close(self) -> None:
        """End what works in the background."""
        ...


@dataclass(frozen=True)
class Loader:
    """Batches in an order, with views and masks that depend on its seed alone.

    Attributes:
        masking, grid: what to mask; None where nothing is masked.
        ahead: batches to announce to the source of views beyond the one that is asked for.
    """

    view_source: ViewSource
    order: Sampler
    masking: Masking | None = None
    grid: Grid = (0, 0)
    ahead: int = 2
    watch: Stopwatch = field(default_factory=Stopwatch, compare=False)

    def __call__(self, step: int) -> Batch:
        """The batch of one step, counted from 0."""
        with self.watch:
            self.view_source.prefetch([self.order(step + later) for later in range(self.ahead + 1)])
            return self.at(self.order(step))

    @property
    def waited(self) -> float:
        """Seconds that making batches has kept the caller waiting."""
        return self.watch.seconds

    def close(self) -> None:
        """End what works in the background."""
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
        return batch if self.masking is None else _masked(batch, self.masking, fold(rows.keys, Stream.MASK), self.grid)


@dataclass(frozen=True)
class InMemoryViewSource:
    """Shows images that are in memory: crop, scale and mirror as two matrix products for the whole batch."""

    source: ImageDataset
    views: TwoViews

    def prefetch(self, batches: Sequence[SampledBatch]) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Nothing to end."""

    def __call__(self, rows: SampledBatch) -> Views:
        chosen, views = torch.from_numpy(rows.index), self.views
        assert self.source.pixels is not None, "these images are not in memory"
        images, label = self.source.pixels[chosen], self.source.labels_at(rows.index)
        crop = views.crop(rows.view_keys, *images.shape[-2:])
        unmirrored = torch.zeros(len(images), dtype=torch.bool)  # the resampling mirrors
        if views.jitter_when == "before_crop":
            images = recolour(images, *colours(views, rows.view_keys, images), unmirrored)
        shown = [resample(images, crop, views.size)]
        if views.token_size is not None:
            shown.append(resample(images, crop, views.token_size, "lanczos"))
        if views.jitter_when == "after_crop":
            change = colours(views, rows.view_keys, shown[-1])
            shown = [recolour(view, *change, unmirrored) for view in shown]
        return Views(shown[0], shown[1] if len(shown) > 1 else None, chosen, label)


def colours(views: TwoViews, keys: Keys, images: Tensor) -> tuple[Tensor, Tensor]:
    """The colour matrix of each image and its offset.

    Args:
        images: what contrast turns around the mean grey of; of two views of a crop the smaller will do.
    """
    factors = torch.from_numpy(views.jitter(keys)).to(images.device, torch.float32)
    return colour_matrix(factors, channel_means(images))


def _masked(batch: Batch, masking: Masking, keys: Keys, grid: Grid) -> Batch:
    mask = masking(keys, grid)
    index, weight = mask_index(mask, masking.count(grid))
    return replace(
        batch, mask=torch.from_numpy(mask), mask_index=torch.from_numpy(index), mask_weight=torch.from_numpy(weight)
    )
