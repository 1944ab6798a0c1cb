"""Batches of photographs with the class of every pixel: one crop, mirror and scale for both."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from smalti.core.contracts import Sample
from smalti.core.rng import Keys
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.loader import SampledBatch, Views, colours
from smalti.data.transforms.augment import recolour, resample
from smalti.data.transforms.views import Box, TwoViews

_THREADS = 2
_Key = tuple[int, int]
"""Position and key of an image: what it looks like is a function of both."""


class View(NamedTuple):
    """What is seen of a scene."""

    image: Float[Tensor, "C h w"]
    label_map: UInt8[Tensor, "h w"]


@dataclass(frozen=True, eq=False)
class SegmentationViewSource:
    """Shows scenes, which threads read from the disk while the network computes."""

    scenes: ImageDataset
    views: TwoViews
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_THREADS))
    begun: dict[_Key, "Future[View]"] = field(default_factory=dict)

    def prefetch(self, batches: Sequence[SampledBatch]) -> None:
        """Let the threads begin with these."""
        for task in (task for rows in batches for task in _tasks(rows)):
            self._begin(task)

    def close(self) -> None:
        """End the threads."""
        self.threads.shutdown(cancel_futures=True)

    def __call__(self, rows: SampledBatch) -> Views:
        tasks = _tasks(rows)
        shown = [self._begin(task) for task in tasks]
        for task in tasks:
            self.begun.pop(task, None)
        views = [future.result() for future in shown]
        images, label_maps = (torch.stack(parts) for parts in zip(*views, strict=True))
        return Views(images, None, torch.from_numpy(rows.index), torch.full((len(images),), -1), label_maps)

    def _begin(self, task: _Key) -> "Future[View]":
        if task not in self.begun:
            index, key = task
            self.begun[task] = self.threads.submit(lambda: seen(self.scenes[index], self.views, np.uint64(key)))
        return self.begun[task]


def _tasks(rows: SampledBatch) -> list[_Key]:
    return [(int(index), int(key)) for index, key in zip(rows.index, rows.view_keys, strict=True)]


def seen(scene: Sample, views: TwoViews, key: np.uint64) -> View:
    """A scene as its key has it seen: pixels bicubic, classes by the nearest pixel; colours change the pixels alone."""
    assert scene.label_map is not None
    keys: Keys = np.array([key])
    image = torch.from_numpy(scene.image).permute(2, 0, 1)[None]
    crop, unmirrored = views.crop(keys, *scene.label_map.shape), torch.zeros(1, dtype=torch.bool)
    if views.jitter_when == "before_crop":
        image = recolour(image, *colours(views, keys, image), unmirrored)
    shown = resample(image, crop, views.size)
    if views.jitter_when == "after_crop":
        shown = recolour(shown, *colours(views, keys, shown), unmirrored)
    box: Box = tuple(crop.box[0].tolist())
    return View(shown[0], torch.from_numpy(cut(scene.label_map, box, bool(crop.flip[0]), views.size)))


def cut(label_map: UInt8[np.ndarray, "H W"], box: Box, flip: bool, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """What lies nearest to the centre of each pixel of the crop that `resample` makes of the image."""
    rows = _nearest(box[0], box[2], label_map.shape[0], size[0])
    columns = _nearest(box[1], box[3], label_map.shape[1], size[1])
    return label_map[np.ix_(rows, columns[::-1] if flip else columns)]


def _nearest(start: float, length: float, size_in: int, size_out: int) -> NDArray[np.int64]:
    centres = (start + (np.arange(size_out) + 0.5) * length / size_out) * size_in
    return np.clip(np.floor(centres).astype(np.int64), 0, size_in - 1)
