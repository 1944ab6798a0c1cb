"""What `smalti plan` proposes for some images on this machine: steps of both stages, their cost, and the commands."""

import math
import shlex
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from smalti.core.log import printable
from smalti.models.cost_estimate import num_parameters
from smalti.models.vit import ViT

SPENT_ON_STEPS, TOKENIZER_SHARE = 0.95, 0.15
"""The rest goes into starting, compiling and measuring; what the tokenizer may take of the time, at most."""
ENOUGH_STEPS = 20_000
"""Pretraining steps below which more are worth their time."""
_FEW_IMAGES = 5000


class Survey(NamedTuple):
    """The number of images and of training images, their typical shorter side, and how many of those read were bad."""

    images: int
    train: int
    shorter_side: int
    looked_at: int
    unreadable: int


@dataclass(frozen=True)
class StagePlan:
    """Optimiser steps of a stage, in so many micro-batches each, and the seconds that a step takes here."""

    steps: int
    seconds_per_step: float
    batch_size: int
    accumulate: int = 1

    @property
    def hours(self) -> float:
        """The time for all steps."""
        return self.steps * self.seconds_per_step / 3600

    def epochs(self, num_images: int) -> float:
        """How often each of so many images is seen."""
        return self.steps * self.batch_size / num_images

    def as_dict(self) -> dict[str, Any]:
        """The fields and the hours as JSON values."""
        return {**asdict(self), "hours": self.hours}

    def describe(self) -> str:
        """The stage in half a line."""
        parts = f" in {self.accumulate} parts" if self.accumulate > 1 else ""
        each_step = f"{self.steps} steps of {self.batch_size} images{parts}"
        return f"{each_step}, {self.seconds_per_step:.2g} s each: {self.hours:.2g} hours"


@dataclass(frozen=True)
class FinetunePlan:
    """Length and batches of fine-tuning on the labels that are there."""

    classes: int
    labels: int
    steps: int
    batch_size: int

    @property
    def epochs(self) -> float:
        """How often each label is seen."""
        return self.steps * self.batch_size / self.labels

    def as_dict(self) -> dict[str, Any]:
        """The fields and the epochs as JSON values."""
        return {**asdict(self), "epochs": self.epochs}


@dataclass(frozen=True)
class Proposal:
    """A recipe for some images, adapted to them, and to the time there is on this machine.

    Attributes:
        hours: the time for both stages that was asked for.
        full_steps: of a pretraining that is not limited by the time.
        multiply_adds_per_image: of pretraining, forward and backward.
        streamed: the images do not fit into memory.
        seconds_per_image: of reading.
        memory: peak bytes of main memory.
        device_memory: peak bytes of accelerator memory; None if there is no accelerator.
        finetune: its time is not part of the hours; None: the images have no classes, or the recipe no fine-tuning.
        commands: as they are typed.
    """

    data: str
    survey: Survey
    device: str
    hours: float
    recipe: str
    backbone: ViT
    vocab_size: int
    tokenizer: StagePlan
    pretrain: StagePlan
    full_steps: int
    multiply_adds_per_image: float
    streamed: bool
    seconds_per_image: float
    memory: int
    device_memory: int | None
    finetune: FinetunePlan | None = None
    commands: tuple[str, ...] = ()

    @property
    def full(self) -> StagePlan:
        """Pretraining that is not limited by the time."""
        return StagePlan(self.full_steps, self.pretrain.seconds_per_step, self.pretrain.batch_size)

    @property
    def reading_hours(self) -> float:
        """What reading takes before the first steps: each stage reads all images that fit into memory once."""
        return 0.0 if self.streamed else 2 * self.survey.images * self.seconds_per_image / 3600

    @property
    def warnings(self) -> list[str]:
        """What speaks against the proposal."""
        found, run, survey = [], self.pretrain, self.survey
        if survey.train < _FEW_IMAGES:
            gained = "2 508 photographs of groceries were worth 23 points of linear probe, and more images more"
            found.append(f"{survey.train} images to learn from: few, but not too few: {gained}")
        if run.steps < ENOUGH_STEPS:
            alone = ENOUGH_STEPS * run.seconds_per_step / 3600
            enough = (alone / (1 - TOKENIZER_SHARE) + self.reading_hours) / SPENT_ON_STEPS
            few = f"{run.steps} steps: {ENOUGH_STEPS} would learn more"
            found.append(f"{few}; --hours {math.ceil(10 * enough) / 10:g} is enough for them")
        if (side := self.backbone.img_size[0]) > survey.shorter_side:
            found.append(f"images of {survey.shorter_side} pixels are enlarged to {side}")
        if survey.unreadable:
            counts = f"{survey.unreadable} of {survey.looked_at} images looked at cannot be read"
            found.append(f"{counts}: {shlex.join(['smalti', 'check', self.data])} names all of them")
        if self.streamed and run.batch_size * self.seconds_per_image > run.seconds_per_step:
            speed = f"{1 / self.seconds_per_image:.0f} images a second"
            found.append(f"reading takes longer than computing, {speed}: smalti prepare")
        if self.reading_hours > (1 - SPENT_ON_STEPS) * self.hours:
            found.append(f"reading the images takes {self.reading_hours:.2g} hours of the time: smalti prepare")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The proposal as JSON values."""
        vit, train = self.backbone, self.survey.train
        work = {"multiply_adds_per_image": self.multiply_adds_per_image}
        size = {"embed_dim": vit.embed_dim, "depth": vit.depth, "num_heads": vit.num_heads}
        full = {"steps": self.full.steps, "hours": self.full.hours, "epochs": self.full.epochs(train)}
        result: dict[str, Any] = {
            "data": self.data,
            **self.survey._asdict(),
            "device": self.device,
            "hours": self.hours,
            "recipe": self.recipe,
            "img_size": vit.img_size[0],
            "patch_size": vit.patch_size,
            "tokens": vit.grid[0] * vit.grid[1],
            "vocab_size": self.vocab_size,
            "backbone": size | {"num_parameters": num_parameters(vit)},
            "tokenizer": self.tokenizer.as_dict(),
            "pretrain": self.pretrain.as_dict() | {"epochs": self.pretrain.epochs(train)} | work,
            "full": full,
            "streamed": self.streamed,
            "reading_hours": self.reading_hours,
            "memory": self.memory,
            "device_memory": self.device_memory,
            "warnings": self.warnings,
            "commands": list(self.commands),
        }
        return result | ({} if self.finetune is None else {"finetune": self.finetune.as_dict()})

    def describe(self) -> str:
        """The proposal as a table, and below it the commands."""
        table = "\n".join(f"{title:<14}{text}" for title, text in self._rows())
        return "\n".join([table, "", *self.commands])

    def _rows(self) -> list[tuple[str, str]]:
        vit, survey, run, full = self.backbone, self.survey, self.pretrain, self.full
        (side, _), (rows, columns) = vit.img_size, vit.grid
        counts = f"{survey.images}, of them {survey.train} to learn from"
        size = f"{vit.embed_dim} wide, {vit.depth} deep, {vit.num_heads} heads"
        memory = [("main", self.memory), ("device", self.device_memory)]
        found = [
            ("images", f"{counts}; shorter side {survey.shorter_side}"),
            ("device", self.device),
            ("recipe", f"{self.recipe}: {side} x {side} pixels, patches of {vit.patch_size}"),
            ("tokens", f"{rows * columns} an image, of {self.vocab_size}"),
            ("backbone", f"{size}: {num_parameters(vit) / 1e6:.1f} M parameters"),
            ("tokenizer", self.tokenizer.describe()),
            ("pretraining", f"{run.describe()}, {run.epochs(survey.train):.0f} epochs"),
            ("", f"{self.multiply_adds_per_image / 1e6:,.0f} M multiply-adds an image, forward and backward"),
            ("in full", f"{full.steps} steps, {full.epochs(survey.train):.0f} epochs: {full.hours:.2g} hours"),
            ("memory", ", ".join(f"{name} {value / 1e9:.1f} GB" for name, value in memory if value)),
        ]
        if (tune := self.finetune) is not None:
            length = f"{tune.steps} steps of {tune.batch_size} images, {tune.epochs:.0f} epochs"
            found.append(("fine-tuning", f"{length} of {tune.labels} labels; beside the time above"))
        return found + [("warning", printable(warning)) for warning in self.warnings]
