"""From images and view settings to the source of views: from memory, or streamed by workers."""

import os

import torch

from smalti.core.ranks import local_world_size
from smalti.data.bad_files import BadFiles
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.load import Data, TrainingData
from smalti.data.loader import InMemoryViewSource, ViewSource
from smalti.data.stream import StreamedViewSource
from smalti.data.transforms.render import Render
from smalti.data.transforms.views import TwoViews
from smalti.data.workers.jobs import Inline, Renderer
from smalti.data.workers.workers import Workers

_MOST_WORKERS = 16


def open_view_source(
    images: TrainingData[ImageDataset], views: TwoViews, data: Data, batch_size: int, device: torch.device
) -> ViewSource:
    """Shows the images that a run learns from.

    Args:
        batch_size: images of a batch in this process.
        device: where mirror and colours of streamed images are computed.
    """
    if images.bad_files is None:
        return InMemoryViewSource(images.train, views)
    renderer = _renderer(Render(images.train, views), images.bad_files, data, batch_size, device)
    return StreamedViewSource(images.train, views, renderer, images.bad_files, device)


def _renderer(render: Render, bad: BadFiles, data: Data, batch_size: int, device: torch.device) -> Renderer:
    num_workers = default_workers(device) if data.num_workers is None else data.num_workers
    if num_workers == 0:
        return Inline(render, quarantined=frozenset(bad.quarantined))
    bad.log.say(f"data workers: {num_workers}")
    return Workers(
        render,
        batch_size,
        num_workers,
        timeout=data.worker_timeout,
        quarantined=frozenset(bad.quarantined),
        say=bad.log.say,
    )


def default_workers(device: torch.device) -> int:
    """Of this process's cores a quarter where the network needs them too, else all but one."""
    cores = max(1, (os.cpu_count() or 1) // local_world_size())
    return max(1, cores // 4) if device.type == "cpu" else max(1, min(cores - 1, _MOST_WORKERS))
