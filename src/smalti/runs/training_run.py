"""Configuration that all training runs share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import nn

from smalti.core.compute import Compile, Device, Precision, compile_blocks, should_compile
from smalti.core.config import require, setting
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.load import Data
from smalti.data.reading import Normalisation, statistics
from smalti.data.transforms.views import RandomResizedCrop, SquareCrop
from smalti.data.values import AskedWindow
from smalti.distributed.process_group import Ranks
from smalti.models.vit import ViT
from smalti.training.checkpoint import Checkpoint, read_checkpoint
from smalti.training.optim import Optimiser
from smalti.training.trackers import TrackerName
from smalti.training.training_plan import Plan
from smalti.weights.read import read_source
from smalti.weights.source import SourceWeights

LEARNING_RATE = "learning rate"


@dataclass(frozen=True)
class TrainingRun:
    """Images, steps, and where and how they are computed."""

    data: Data = Data()
    out: str = setting("", "the run folder to write")
    crop: RandomResizedCrop | SquareCrop = RandomResizedCrop()
    optimiser: Optimiser = Optimiser()
    plan: Plan = Plan()
    ema_decay: float | None = setting(None, "of the average of weights, a step; none: no averaging")
    profile: int = setting(0, "steps to record: profile.json in the run folder, and a table; 0: none", resume="free")
    log: TrackerName = setting("none", "where metrics and pictures go besides metrics.jsonl", resume="free")
    log_pictures: int = setting(500, "steps between pictures for log, and at the end; 0: none", resume="free")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    seed: int = setting(0, "of order, crops, masks, mixing, noise, labels and weights")
    ranks: Ranks = Ranks()

    def __post_init__(self) -> None:
        require(self.ema_decay is None or 0 < self.ema_decay < 1, f"ema_decay {self.ema_decay}", "use one in (0, 1)")
        require(self.profile >= 0, f"profile is {self.profile}", "use 0 or more steps")
        require(self.log_pictures >= 0, f"log_pictures is {self.log_pictures}", "use 0 or more steps")
        require(0 <= self.seed < 2**63, f"a seed of {self.seed}", "use 0 to 2^63 - 1")

    def schedules(self) -> dict[str, Callable[[int], float]]:
        """What changes from step to step, by name: its value at a step, counted from 1."""
        return {LEARNING_RATE: self.optimiser.scaled_to(self.plan.batch_size).lr_schedule(self.plan.steps)}

    def with_window(self, log: Log, before: AskedWindow = None, run: str = "", images: str = "") -> Self:
        """The configuration with the value window of the run that this one builds on, else as measured where `auto`.

        Args:
            before: the window of that run.
            run: its folder, for messages.
            images: where the window is measured, if not on all that `data.path` has.

        Raises:
            UsageError: another window is asked for than that run has.
        """
        if before is not None and self.data.window != before:
            fix = "leave --data.window out: both see the same values then"
            require(self.data.window in (None, "auto"), f"data.window is not that of {run}, {before}", fix)
            log.say(f"value window {before}, as of {run}")
            return replace(self, data=replace(self.data, window=before))
        window = replace(self.data, path=images or self.data.path).measured(log).window
        return replace(self, data=replace(self.data, window=window))


@dataclass(frozen=True)
class BackboneRun(TrainingRun):
    """A run in which a Transformer over patches learns."""

    crop: RandomResizedCrop = RandomResizedCrop()
    backbone: ViT = ViT()
    normalisation: Normalisation | None = setting(
        None, "of pixels: half (0.5), imagenet, auto (measured); none: as of a run in init, else backbone.mean and .std"
    )
    compile: Compile = setting("auto", "whether to compile the blocks; auto: where it pays")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.data.channels == self.backbone.in_chans,
            f"data.channels {self.data.channels} and backbone.in_chans {self.backbone.in_chans} differ",
            f"use --backbone.in-chans {self.data.channels}",
        )

    def say_enlarged(self, images: ImageDataset, log: Log) -> None:
        """Say where images in memory have fewer pixels than the network reads."""
        side, (height, width) = self.data.side, self.backbone.img_size
        if images.pixels is not None and side < max(height, width):
            kept = f"images are kept at {side} x {side} pixels (--data.side) and enlarged to {height} x {width}"
            log.say(f"{kept}; --backbone.img-size {side} {side} reads them as they are")

    def compile_blocks(self, blocks: Iterable[nn.Module], device: torch.device) -> None:
        """Compile blocks in place, if that is requested or worthwhile."""
        if self.compiles(device):
            compile_blocks(blocks)

    def compiles(self, device: torch.device) -> bool:
        """Whether compiling is requested or worthwhile."""
        return should_compile(self.compile, self.plan.steps, device)

    def normalised(self, images: ImageDataset) -> Self:
        """The configuration with the pixel mean and standard deviation that `normalisation` asks for."""
        if self.normalisation is None:
            return self
        mean, std = statistics(self.normalisation, images, self.data.channels, self.data.side)
        return replace(self, backbone=replace(self.backbone, mean=mean, std=std), normalisation=None)

    def read_weights(self, run: Path) -> Checkpoint:
        """The trained weights of a run with this configuration."""
        return read_checkpoint(run)

    def source(self, init: str, run: "BackboneRun | None", same_outputs: bool) -> SourceWeights:
        """The weights at `init` to start from, which fit the backbone.

        Args:
            run: the configuration of that run; None if the weights are from another program.
            same_outputs: the head has the same outputs as here, so it is loaded too.

        Raises:
            UsageError: the configured backbone differs.
            CheckpointError: there are no weights, or those of an unknown network.
        """
        if run is None:
            source = read_source(init)
        else:
            weights = run.read_weights(Path(init).expanduser()).model
            source = SourceWeights(init, weights, run.backbone.grid, run.backbone.num_heads)
        source.require_fit(self.backbone)
        return source if same_outputs else source.without_head()
