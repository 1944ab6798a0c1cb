"""Time the steps of both stages on this machine by running some on a few images. No run folder is written."""

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from smalti.core.compute import Compute, peak_memory
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.open import EMBEDDED
from smalti.data.load import Data, InMemoryData, read_source, split_held_out
from smalti.runs import pretrain, train_tokenizer
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.session import seconds_per_step
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.image_tokenizer import ImageTokenizer

_IMAGES = 96
"""Decoded for a dry run; batches repeat them."""
_STEPS, _MIN_STEPS, _SECONDS = 20, 3, 60.0
"""Of a stage; fewer where they would take longer than a minute."""
_QUICK_IMAGES = 8
"""In a batch of the first look at a network that may be far too large for the machine."""


class Stages(NamedTuple):
    """Both stages of a recipe."""

    tokenizer: TrainTokenizer
    pretrain: Pretrain


@dataclass(frozen=True)
class DryRun:
    """The measurements of a dry run.

    Attributes:
        stages: the stages as run, with each batch split into as many parts as the device memory requires.
        tokenizer_step, pretrain_step: seconds of an optimiser step.
        reading: seconds to read and resize one image, using all cores.
        memory: peak bytes of main memory, without the images.
        device_memory: peak bytes of accelerator memory; None if there is no accelerator.
    """

    stages: Stages
    tokenizer_step: float
    pretrain_step: float
    reading: float
    memory: int
    device_memory: int | None


def quick_estimate(stages: Stages, source: ImageDataset, compute: Compute) -> float:
    """An upper estimate of the seconds of a pretraining step: small batches are not the most efficient."""
    run = stages.pretrain
    images, size = few_images(source, run.data), run.plan.batch_size
    small = min(_QUICK_IMAGES, size)
    plan = replace(run.plan, batch_size=small, accumulate=1, repeat=True)
    tokenizer = _frozen(stages.tokenizer.tokenizer.build().to(compute.device))
    trial = pretrain.prepare(replace(run, plan=plan, compile="off"), images, tokenizer, compute)
    return seconds_per_step(*trial, compute, steps=1) * size / small


def dry_run(stages: Stages, source: ImageDataset, compute: Compute, expected: float) -> DryRun:
    """Run some steps of both stages on real images.

    Args:
        expected: seconds of a pretraining step, from `quick_estimate`.
    """
    num_steps = max(_MIN_STEPS, min(_STEPS, int(_SECONDS / expected)))
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = replace(stages.tokenizer, plan=replace(stages.tokenizer.plan, repeat=True))
    trial = train_tokenizer.prepare(first, few_images(source, first.data), compute)
    tokenizer_step = seconds_per_step(*trial, compute, steps=num_steps)
    tokenizer = trial[0].objective.model
    assert isinstance(tokenizer, ImageTokenizer)
    began = time.perf_counter()
    images = few_images(source, stages.pretrain.data)
    reading = (time.perf_counter() - began) / (len(images.train) + len(images.held_out))
    run, pretrain_step = fitting(stages.pretrain, images, _frozen(tokenizer), compute, num_steps)
    device_memory = torch.cuda.max_memory_allocated() if compute.device.type == "cuda" else None
    return DryRun(Stages(stages.tokenizer, run), tokenizer_step, pretrain_step, reading, peak_memory(), device_memory)


def fitting(
    run: Pretrain, images: InMemoryData, tokenizer: ImageTokenizer, compute: Compute, num_steps: int
) -> tuple[Pretrain, float]:
    """The run with batches split so that they fit the accelerator's memory, and the seconds of a step."""
    run = replace(run, plan=replace(run.plan, repeat=True))
    while True:
        try:
            return run, seconds_per_step(*pretrain.prepare(run, images, tokenizer, compute), compute, steps=num_steps)
        except torch.OutOfMemoryError:
            if run.plan.micro_batch_size % 2:
                raise
        run = replace(run, plan=replace(run.plan, accumulate=2 * run.plan.accumulate))


def few_images(source: ImageDataset, data: Data) -> InMemoryData:
    """Load some images of `data`, opened as `source`, into memory; unreadable ones are left out."""
    some = replace(data, limit=_IMAGES, max_bad_fraction=1.0, on_bad_image="replace")
    if data.path == EMBEDDED:
        return some.load(Log())
    return split_held_out(read_source(source, some, Log()), some.held_out)


def _frozen(tokenizer: ImageTokenizer) -> ImageTokenizer:
    return tokenizer.eval().requires_grad_(False)
