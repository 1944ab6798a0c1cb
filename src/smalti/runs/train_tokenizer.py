"""`smalti train-tokenizer`: stage one, an image tokenizer from unlabelled images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smalti.core.compute import Compute, Device, Precision
from smalti.core.config import require, setting
from smalti.core.contracts import Objective
from smalti.core.errors import UsageError
from smalti.core.ranks import is_rank0, rank, world_size
from smalti.core.rng import permutation
from smalti.data.load import AnyImages, Data, InMemoryData, RunImages
from smalti.data.loader import Loader, Sampler, open_view_source
from smalti.data.reading import some_squares
from smalti.data.transforms.views import NO_JITTER, ColorJitter, RandomResizedCrop, TwoViews
from smalti.distributed.collectives import Ranks, from_rank0, process_group
from smalti.evaluation.reconstruction import evaluate_tokenizer
from smalti.functional.losses import Likelihood
from smalti.runs.collapse_check import some_images
from smalti.runs.folder import read_config, read_kind, writing
from smalti.runs.import_tokenizer import load_dalle
from smalti.runs.session import Session
from smalti.tokenizers.dalle import DallE, DallETokenizer
from smalti.tokenizers.dvae import DVAE, DiscreteVAE
from smalti.tokenizers.fsq import FSQ
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.tokenizers.quantised import Quantised
from smalti.tokenizers.simple import KMeansPatches, RandomProjection
from smalti.tokenizers.vq import VQ
from smalti.training.checkpoint import load_weights, read_checkpoint, write_checkpoint
from smalti.training.objectives import DiscreteVAEObjective, Relaxation
from smalti.training.optim import AdamW
from smalti.training.quantised import QuantisedObjective
from smalti.training.trainer import Trainer
from smalti.training.training_plan import Plan


@dataclass(frozen=True)
class TrainTokenizer:
    """Everything about a tokenizer run."""

    data: Data = Data()
    out: str = setting("", "the run folder to write")
    tokenizer: DVAE | DallE | VQ | FSQ | KMeansPatches | RandomProjection = DVAE()
    relaxation: Relaxation = Relaxation()
    """Of the discrete VAEs only, DVAE and DallE."""
    likelihood: Likelihood = setting(
        "logit_laplace", "how reconstructions are compared: in nats, or as errors of pixels in [0, 1]", "DALL-E, A.3"
    )
    crop: RandomResizedCrop = RandomResizedCrop()
    jitter: ColorJitter = NO_JITTER
    optimiser: AdamW = AdamW()
    plan: Plan = Plan()
    init_images: int = setting(
        1000, "images that the codebook is initialised from; 0: random weights, as in the papers"
    )
    ema_decay: float = setting(0.999, "a step", "DALL-E, appendix A.2")
    profile: int = setting(0, "steps to record: profile.json in the run folder, and a table; 0: none")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    seed: int = setting(0, "of order, crops, noise and weights")
    ranks: Ranks = Ranks()

    def __post_init__(self) -> None:
        require(
            self.data.channels == self.tokenizer.in_chans,
            f"data.channels {self.data.channels} and tokenizer.in_chans {self.tokenizer.in_chans} differ",
        )
        require(
            self.data.side % self.tokenizer.stride == 0,
            f"tokenizer.stride {self.tokenizer.stride} does not divide data.side {self.data.side}",
            f"use a side that is a multiple of {self.tokenizer.stride}",
        )
        require(self.init_images >= 0, f"init_images is {self.init_images}", "use 0 or more")
        require(
            self.init_images > 0 or not is_fitted(self.tokenizer),
            "a tokenizer fitted to no images",
            "use more init_images",
        )
        require(0 < self.ema_decay < 1, f"ema_decay {self.ema_decay}", "choose one between 0 and 1")
        require(self.profile >= 0, f"profile is {self.profile}", "use 0 or more steps")
        require(0 <= self.seed < 2**63, f"a seed of {self.seed}", "use 0 to 2^63 - 1")


def main(
    config: TrainTokenizer,
    *,
    resume: bool = False,
    allow_inexact: bool = False,
    images: InMemoryData | None = None,
    compute: Compute | None = None,
) -> dict[str, Any]:
    """Train, save, measure on held-out images. Baselines are fitted instead; `plan` and `optimiser` are then not used.

    Args:
        resume: go on with the run in `config.out`; from step 0 where it has saved nothing yet.
        allow_inexact: also with other settings, threads or processes than it began with.
        images: the images of `config.data`, where they are in memory already.
        compute: where to compute, where that is settled already.

    Returns:
        The result, as written to result.json.
    """
    with process_group(config.ranks, config.device), writing(config.out):
        session = Session.open(config, resume=resume, compute=compute, allow_inexact=allow_inexact)
        return _run(config, session, images)


def _run(config: TrainTokenizer, session: Session, images: InMemoryData | None) -> dict[str, Any]:
    """The run, in a folder that nobody else writes."""
    given = config.data.open(session.log, session.folder.bad_files) if images is None else images
    if not session.resumed:
        config = session.settled(replace(config, data=config.data.settled(given)))
        session.folder.write_config(config)
    session.same_images(given.train)
    tokenizer = made(config, given, session).to(session.compute.device)
    result: dict[str, Any] = from_rank0(lambda: session.finish(_measured(config, given, tokenizer, session.compute)))
    return result


def _measured(config: TrainTokenizer, given: RunImages, tokenizer: ImageTokenizer, compute: Compute) -> dict[str, Any]:
    """The result of the run."""
    measured = evaluate_tokenizer(
        tokenizer,
        given.held_out.images,
        compute,
        train=some_images(given.train, config.data.side),
        density=config.likelihood == "logit_laplace",
    )
    counts = {"train_images": len(given.train), "held_out_images": len(given.held_out), "steps": planned_steps(config)}
    return measured.as_dict() | {"vocab_size": tokenizer.vocab_size} | counts


def made(config: TrainTokenizer, images: RunImages, session: Session) -> ImageTokenizer:
    """The tokenizer, trained or fitted, and saved."""
    if planned_steps(config) > 0:
        trainer, batches = prepare(config, images, session.compute)
        session.train("tokenizer", trainer, batches, config.plan, config.profile)
        trained = trainer.trained
        assert isinstance(trained, ImageTokenizer)
        return trained
    tokenizer = start(config, images)
    session.log.say(f"fitted to at most {config.init_images} images; there is nothing to train")
    if is_rank0():
        write_checkpoint(session.folder.path, 0, tokenizer, {})
    return tokenizer


def is_fitted(tokenizer: object) -> bool:
    """Whether a tokenizer of this configuration is fitted to some images, and not trained."""
    return isinstance(tokenizer, KMeansPatches | RandomProjection)


def planned_steps(config: TrainTokenizer) -> int:
    """Optimiser steps: none for tokenizers that are fitted."""
    return 0 if is_fitted(config.tokenizer) else config.plan.steps


def prepare(config: TrainTokenizer, images: AnyImages, compute: Compute) -> tuple[Trainer, Loader]:
    """A trainer at step 0, and the batches it is going to see."""
    plan, side = config.plan, config.data.side
    plan.require_images(len(images.train))
    views, share = TwoViews(config.crop, (side, side), jitter=config.jitter), plan.batch_size // world_size()
    order = Sampler(len(images.train), plan.batch_size, config.seed, (rank(), world_size()))
    batches = Loader(open_view_source(images, views, config.data, share, compute.device), order)
    objective = build_objective(config, start(config, images).to(compute.device))
    return Trainer(objective, config.optimiser, plan, config.ema_decay), batches


def start(config: TrainTokenizer, images: AnyImages) -> ImageTokenizer:
    """The tokenizer at step 0, initialised from some of the training images."""
    side, tokenizer = config.data.side, config.tokenizer.build(config.seed)
    if config.init_images == 0:
        return tokenizer
    sample = some_squares(images.train, config.init_images, side)
    num_patches = len(sample) * (side // tokenizer.stride) ** 2
    tokenizer.initialise_from(sample, torch.from_numpy(permutation(config.seed, 0, num_patches)))
    return tokenizer


def build_objective(config: TrainTokenizer, tokenizer: ImageTokenizer) -> Objective:
    """What is minimised while this kind of tokenizer is trained.

    Raises:
        UsageError: nothing is; it is fitted.
    """
    if isinstance(tokenizer, DiscreteVAE | DallETokenizer):
        return DiscreteVAEObjective(tokenizer, config.relaxation, config.plan.steps, config.likelihood)
    if isinstance(tokenizer, Quantised):
        return QuantisedObjective(tokenizer, config.likelihood)
    raise UsageError(f"a {type(config.tokenizer).__name__} tokenizer is fitted, not trained")


def load_tokenizer(run: str, compute: Compute) -> ImageTokenizer:
    """The tokenizer of a run folder, of whichever kind, or an imported one."""
    if read_kind(run) == DallE.__name__:
        return load_dalle(run, compute)
    tokenizer = read_config(run, TrainTokenizer).tokenizer.build()
    load_weights(tokenizer, read_checkpoint(Path(run).expanduser()).model, run)
    return tokenizer.eval().requires_grad_(False).to(compute.device)


def has_density(run: str) -> bool:
    """Whether p(x|z) of the tokenizer in a run folder was trained as a density, and not as an error of pixels."""
    return read_kind(run) == DallE.__name__ or read_config(run, TrainTokenizer).likelihood == "logit_laplace"
