"""`smalti plan`: propose two commands for the given images and this machine, and estimate what they will take."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from smalti.core.compute import Compile, Compute, Device, Precision, choose_compute
from smalti.core.config import require, setting
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.layout import read_layout
from smalti.data.datasets.open import ReadOptions, open_with_notes, read_as
from smalti.data.load import Data
from smalti.data.reading import channels_in, even_sample, map_images
from smalti.functional.codebook import default_vocab_size
from smalti.models.cost_estimate import pretraining_multiply_adds
from smalti.runs.commands import channel_flags, reading_flags, unless
from smalti.runs.dry_run import DryRun, Stages, dry_run, quick_estimate
from smalti.runs.finetune import Finetune
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.proposal import (
    ENOUGH_STEPS,
    SPENT_ON_STEPS,
    TOKENIZER_SHARE,
    FinetunePlan,
    Proposal,
    StagePlan,
    Survey,
)
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.dvae import DVAE
from smalti.tokenizers.teacher_features import TeacherBased
from smalti.training.training_plan import Plan

BackboneRunT = TypeVar("BackboneRunT", Pretrain, Finetune)

_LOOKED_AT = 64
"""Images whose sizes are looked at."""
_MAX_ENLARGED = 1.5
"""A recipe may enlarge the usual image by so much."""
_MAX_STEPS, _FULL_EPOCHS = 500_000, 800
"""Pretraining steps of the paper, and its epochs."""
_FINETUNE_STEPS, _FINETUNE_EPOCHS = 2000, 60
"""The least steps of fine-tuning (on 1 995 labels 600 ended below the frozen probe, and 2 000 above), and epochs."""
_MIN_STEPS = 20
_PROMISING = {"cpu": 1.5}
_PROMISING_ELSEWHERE = 8.0
"""How much too slow a network may look at a glance to be tried all the same: accelerators like large batches."""


@dataclass(frozen=True)
class PlanAhead(ReadOptions):
    """For which images and how much time."""

    data: str
    """As for check: a folder, a list, tar shards, Parquet files, a data set of Hugging Face, prepared shards, or
    'embedded'."""
    hours: float = setting(1.0, "time for both stages")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    compile: Compile = setting("auto", "whether to compile the blocks; auto: where it pays")

    def __post_init__(self) -> None:
        require(self.hours > 0, f"{self.hours} hours", "use more than 0")


class Candidate(NamedTuple):
    """A candidate recipe, the minimum number of images it is meant for, and its fine-tuning, if it has any."""

    stages: Stages
    least_images: int = 0
    finetune: Finetune | None = None


def with_channels(candidate: Candidate, channels: int) -> Candidate:
    """A candidate for images of so many channels."""
    (tokenizer, pretrain), tune = candidate.stages, candidate.finetune
    assert not isinstance(tokenizer.tokenizer, TeacherBased), "its teacher decides"
    data, part = replace(tokenizer.data, channels=channels), replace(tokenizer.tokenizer, in_chans=channels)
    stages = Stages(replace(tokenizer, data=data, tokenizer=part), _with_channels(pretrain, channels))
    return candidate._replace(stages=stages, finetune=None if tune is None else _with_channels(tune, channels))


def _with_channels(run: BackboneRunT, channels: int) -> BackboneRunT:
    data = replace(run.data, channels=channels)
    return replace(run, data=data, backbone=replace(run.backbone, in_chans=channels))


class Steps(NamedTuple):
    """Optimiser steps of both stages that fit the time, and those of a full pretraining."""

    tokenizer: int
    pretrain: int
    full: int


def main(config: PlanAhead, *, recipes: Mapping[str, Candidate]) -> dict[str, Any]:
    """Read some images, run some steps, and propose what to run. No run folder is written.

    Args:
        recipes: the candidates by name, the smallest first.
    """
    log = Log()
    channels = next(iter(recipes.values())).stages.pretrain.data.channels
    source = open_with_notes(config.data, channels, log, config)
    source.channels = channels_in(source) if channels == 3 else channels
    if source.channels not in (1, 3):
        recipes = {name: with_channels(recipe, source.channels) for name, recipe in recipes.items()}
    survey = look(source, log, read_layout(config.data, config.follow_links).validation)
    compute = choose_compute(config.device, config.precision)
    log.say(f"{survey.images} images, {compute.describe()}")
    name, measured, steps = choose(config, source, survey, recipes, compute, log)
    proposal = propose(config, survey, name, measured, steps, compute)
    words, tuned, length = commands(config, recipes[name].stages, proposal), recipes[name].finetune, None
    if tuned is not None and len(source.classes) > 1:
        length = finetuning(tuned, survey, len(source.classes))
        flags = channel_flags("--backbone.in-chans", source.channels)
        words.append(finetune_command(config, name, length) + flags)
    proposal = replace(proposal, finetune=length, commands=tuple(map(shlex.join, words)))
    print(proposal.describe())
    return proposal.as_dict()


def look(source: ImageDataset, log: Log, validation: str = "") -> Survey:
    """How many images there are, and how large; some are held out unless there are `validation` images.

    Raises:
        DataError: none of the sampled images can be read, or there are fewer than two.
    """
    positions = even_sample(len(source), _LOOKED_AT)
    with map_images(lambda position: min(source[position].image.shape[:2]), positions, log, "look") as each_side:
        found = dict(each_side)
    sides = [side for side in found.values() if not isinstance(side, DataError)]
    unreadable = [what for what in found.values() if isinstance(what, DataError)]
    if len(sides) < 2:
        cause = unreadable[0].cause if unreadable else "training and measuring need at least 2"
        raise DataError(f"{len(sides)} of {len(positions)} images looked at can be read", cause=cause)
    learned = 1.0 if validation else 1 - Data().held_out
    share = learned * len(sides) / len(found) if source.pixels is None else 1.0
    train = max(1, int(share * len(source)))
    return Survey(len(source), train, int(np.median(sides)), len(found), len(unreadable))


def choose(
    config: PlanAhead,
    source: ImageDataset,
    survey: Survey,
    recipes: Mapping[str, Candidate],
    compute: Compute,
    log: Log,
) -> tuple[str, DryRun, Steps]:
    """The largest recipe that suits the images and fits enough steps into the time; otherwise the smallest."""
    for name, (start, least_images, _) in reversed(list(recipes.items())):
        smallest, stages = name == next(iter(recipes)), fit_recipe(start, config, survey)
        too_large = max(stages.pretrain.backbone.img_size) > _MAX_ENLARGED * survey.shorter_side
        if not smallest and (too_large or survey.train < least_images):
            continue
        expected = quick_estimate(stages, source, compute)
        slack = _PROMISING.get(compute.device.type, _PROMISING_ELSEWHERE)
        if not smallest and expected * ENOUGH_STEPS > slack * 3600 * config.hours:
            log.say(f"{name}: too slow here, about {expected:.2g} s a step")
            continue
        log.say(f"{name}: a dry run of both stages")
        measured = dry_run(stages, source, compute, expected)
        steps = affordable_steps(config.hours, survey, measured)
        if smallest or steps.pretrain >= min(ENOUGH_STEPS, steps.full):
            return name, measured, steps
    raise AssertionError("no recipes to choose from")


def fit_recipe(start: Stages, config: PlanAhead, survey: Survey) -> Stages:
    """A recipe with codebook size and batch size adapted to the number of images."""
    tokenizer, pretrain = start
    assert isinstance(tokenizer.tokenizer, DVAE)
    rows, columns = pretrain.backbone.grid
    codes = default_vocab_size(survey.train, rows * columns)
    first = replace(
        tokenizer,
        data=_of(config, tokenizer.data),
        tokenizer=replace(tokenizer.tokenizer, vocab_size=codes),
        plan=_with_batch_size(tokenizer.plan, survey.train),
    )
    data, plan = _of(config, pretrain.data), _with_batch_size(pretrain.plan, survey.train)
    return Stages(first, replace(pretrain, data=data, plan=plan, compile=config.compile))


def _of(config: PlanAhead, data: Data) -> Data:
    return replace(data, path=config.data, **read_as(config))


def _with_batch_size(plan: Plan, num_images: int) -> Plan:
    """The plan with its batch size halved until there are that many images."""
    size = plan.batch_size
    while size > max(num_images, 1):
        size //= 2
    return replace(plan, batch_size=size)


def affordable_steps(hours: float, survey: Survey, measured: DryRun) -> Steps:
    """Steps of both stages that fit the time; pretraining never exceeds its full length."""
    tokenizer, pretrain = measured.stages
    seconds = SPENT_ON_STEPS * 3600 * hours
    if tokenizer.data.fits(survey.images):  # each stage reads them once, before its first step
        seconds -= 2 * survey.images * measured.reading
    in_share = int(TOKENIZER_SHARE * seconds / measured.tokenizer_step)
    first = max(_MIN_STEPS, min(tokenizer.plan.steps, in_share))
    left = int((seconds - first * measured.tokenizer_step) / measured.pretrain_step)
    epochs = _FULL_EPOCHS * survey.train // pretrain.plan.batch_size
    full = min(max(epochs, ENOUGH_STEPS), _MAX_STEPS)
    return Steps(first, max(_MIN_STEPS, min(left, full)), full)


def commands(config: PlanAhead, start: Stages, proposal: Proposal) -> list[list[str]]:
    """The two command lines, as lists of arguments.

    Args:
        start: the recipe, for images of so many channels but else unchanged; each difference becomes a flag.
    """
    data, recipe, codes = ["--data", config.data], proposal.recipe, str(proposal.vocab_size)
    first = ["smalti", "train-tokenizer", recipe, *data, "--out", "runs/tokenizer", "--tokenizer.vocab-size", codes]
    second = ["smalti", "pretrain", recipe, *data, "--tokenizer", "runs/tokenizer", "--out", "runs/beit"]
    channels = start.pretrain.data.channels
    first += channel_flags("--tokenizer.in-chans", channels)
    second += channel_flags("--backbone.in-chans", channels)
    first += _plan_flags(start.tokenizer, proposal.tokenizer)
    second += _plan_flags(start.pretrain, proposal.pretrain)
    second += unless("auto", "--compile", config.compile)
    both = reading_flags(config) + _device_flags(config)
    return [first + both, second + both]


def finetuning(start: Finetune, survey: Survey, classes: int) -> FinetunePlan:
    """Length and batches of fine-tuning; as long as there are labels for."""
    labels = int(survey.train * (1 - start.validation))
    size = min(start.plan.batch_size, labels)
    steps = max(_FINETUNE_STEPS, _FINETUNE_EPOCHS * labels // size)
    return FinetunePlan(classes, labels, steps, size)


def finetune_command(config: PlanAhead, recipe: str, about: FinetunePlan) -> list[str]:
    """The command line that follows pretraining, as a list of arguments."""
    words = ["smalti", "finetune", recipe, "--data", config.data, "--init", "runs/beit", "--out", "runs/classes"]
    words += ["--plan.steps", str(about.steps), "--plan.batch-size", str(about.batch_size)]
    return words + reading_flags(config) + _device_flags(config)


def _plan_flags(run: TrainTokenizer | Pretrain, about: StagePlan) -> list[str]:
    """Flags for length and batches, and for the batch size that the learning rate refers to, if that differs."""
    flags = ["--plan.steps", str(about.steps), "--plan.batch-size", str(about.batch_size)]
    if about.batch_size != run.plan.batch_size and run.optimiser.lr_batch_size is None:
        flags += ["--optimiser.lr-batch-size", str(run.plan.batch_size)]
    return flags + unless("1", "--plan.accumulate", str(about.accumulate))


def _device_flags(config: PlanAhead) -> list[str]:
    return unless("auto", "--device", config.device) + unless("auto", "--precision", config.precision)


def propose(config: PlanAhead, survey: Survey, name: str, measured: DryRun, steps: Steps, compute: Compute) -> Proposal:
    """The proposal, still without commands."""
    tokenizer, pretrain = measured.stages
    assert isinstance(tokenizer.tokenizer, DVAE)
    codes, plan, resident = tokenizer.tokenizer.vocab_size, pretrain.plan, pretrain.data.fits(survey.images)
    in_memory = survey.images * pretrain.data.channels * pretrain.data.side**2 if resident else 0
    work = pretraining_multiply_adds(pretrain.backbone, pretrain.masking, pretrain.decoder, codes)
    return Proposal(
        data=config.data,
        survey=survey,
        device=compute.describe(),
        hours=config.hours,
        recipe=name,
        backbone=pretrain.backbone,
        vocab_size=codes,
        tokenizer=StagePlan(steps.tokenizer, measured.tokenizer_step, tokenizer.plan.batch_size),
        pretrain=StagePlan(steps.pretrain, measured.pretrain_step, plan.batch_size, plan.accumulate),
        full_steps=steps.full,
        multiply_adds_per_image=work.training,
        streamed=not resident,
        seconds_per_image=measured.reading,
        memory=measured.memory + in_memory,
        device_memory=measured.device_memory,
    )
