"""`smalti train-tokenizer`: stage one, an image tokenizer from unlabelled images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from smalti.core.compute import Compute
from smalti.core.config import part, require, setting
from smalti.core.contracts import Objective
from smalti.core.errors import UsageError
from smalti.core.ranks import is_rank0, rank, world_size
from smalti.core.rng import permutation
from smalti.data.load import AnyImages, InMemoryData, RunImages
from smalti.data.loader import Loader, Sampler, open_view_source
from smalti.data.reading import some_squares
from smalti.data.transforms.views import NO_JITTER, ColorJitter, TwoViews
from smalti.distributed.collectives import from_rank0
from smalti.evaluation.reconstruction import describe_training, evaluate_tokenizer
from smalti.evaluation.token_sample import some_images
from smalti.functional.losses import Likelihood
from smalti.runs.session import Session
from smalti.runs.training_run import TrainingRun
from smalti.tokenizers.dalle import DallE, DallETokenizer
from smalti.tokenizers.dvae import DVAE, DiscreteVAE
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.tokenizers.quantised import FSQ, VQ, Quantised
from smalti.tokenizers.simple import KMeansPatches, RandomProjection
from smalti.training.checkpoint import write_checkpoint
from smalti.training.objectives import DiscreteVAEObjective, QuantisedObjective, Relaxation
from smalti.training.optim import AdamW
from smalti.training.trainer import Trainer

_OF_DALLE = ("lr", "end_lr", "decay_ratio", "betas", "eps", "weight_decay")
"""Settings of the optimiser that DALL-E states."""


@dataclass(frozen=True)
class TrainTokenizer(TrainingRun):
    """Everything about a tokenizer run."""

    optimiser: AdamW = part(AdamW(), dict.fromkeys(_OF_DALLE, "DALL-E, appendix A.2"))
    tokenizer: DVAE | DallE | VQ | FSQ | KMeansPatches | RandomProjection = DVAE()
    relaxation: Relaxation = Relaxation()
    """Of the discrete VAEs only, DVAE and DallE."""
    likelihood: Likelihood = setting(
        "logit_laplace", "how reconstructions are compared: in nats, or as errors of pixels in [0, 1]", "DALL-E, A.3"
    )
    jitter: ColorJitter = NO_JITTER
    init_images: int = setting(
        1000, "images that the codebook is initialised from; 0: random weights, as in the papers"
    )
    ema_decay: float = setting(0.999, "a step", "DALL-E, appendix A.2")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.data.channels == self.tokenizer.in_chans,
            f"data.channels {self.data.channels} and tokenizer.in_chans {self.tokenizer.in_chans} differ",
            f"use --tokenizer.in-chans {self.data.channels}",
        )
        require(
            self.data.side % self.tokenizer.stride == 0,
            f"tokenizer.stride {self.tokenizer.stride} does not divide data.side {self.data.side}",
            f"use a side that is a multiple of {self.tokenizer.stride}",
        )
        require(self.init_images >= 0, f"init_images is {self.init_images}", "use 0 or more")
        require(
            self.init_images > 0 or self.planned_steps > 0,
            "a tokenizer fitted to no images",
            "use more init_images",
        )

    def schedules(self) -> dict[str, Callable[[int], float]]:
        """As of every run; and of discrete VAEs the temperature, and the weight of the KL."""
        if not isinstance(self.tokenizer, DVAE | DallE):
            return super().schedules()
        temperature, beta = (make(self.plan.steps) for make in (self.relaxation.annealing, self.relaxation.ramp))
        own = {"temperature": lambda step: temperature(step - 1), "KL weight": lambda step: beta(step - 1)}
        return super().schedules() | own

    @property
    def planned_steps(self) -> int:
        """Optimiser steps; 0 for tokenizers that are fitted to some images and not trained."""
        return 0 if isinstance(self.tokenizer, KMeansPatches | RandomProjection) else self.plan.steps


def main(
    config: TrainTokenizer,
    *,
    resume: bool = False,
    allow_inexact: bool = False,
    images: InMemoryData | None = None,
    compute: Compute | None = None,
) -> dict[str, Any]:
    """Train, save, evaluate on held-out images. Baselines are fitted, without `plan` and `optimiser`.

    Args:
        resume: resume the run in `config.out`; from step 0 if it has saved nothing yet.
        allow_inexact: resume even if settings, threads or processes have changed.
        images: the images of `config.data`, if they are in memory already.
        compute: where to compute, if that is already decided.

    Returns:
        The result, as written to result.json.
    """
    with Session.open(config, resume=resume, compute=compute, allow_inexact=allow_inexact) as session:
        return _run(config, session, images)


def _run(config: TrainTokenizer, session: Session, images: InMemoryData | None) -> dict[str, Any]:
    """The run, in a run folder that this process has locked."""
    if images is None:
        config = config.with_window(session.log)
    given = config.data.open(session.log, session.folder.bad_files) if images is None else images
    if not session.resumed:
        config = session.settled(config, given)
    session.same_images(given.train)
    tokenizer = made(config, given, session).to(session.compute.device)
    return from_rank0(lambda: session.finish(lambda: _measured(config, given, tokenizer, session)))


def _measured(config: TrainTokenizer, given: RunImages, tokenizer: ImageTokenizer, session: Session) -> dict[str, Any]:
    """The result of the run."""
    measured = evaluate_tokenizer(
        tokenizer,
        given.held_out.images,
        session.compute,
        train=some_images(given.train, config.data.side),
        density=config.likelihood == "logit_laplace",
    )
    counts = {"train_images": len(given.train), "held_out_images": len(given.held_out), "steps": config.planned_steps}
    result = measured.as_dict() | {"vocab_size": tokenizer.vocab_size} | counts
    session.log.say(describe_training(result))
    return result


def made(config: TrainTokenizer, images: RunImages, session: Session) -> ImageTokenizer:
    """The tokenizer, trained or fitted, and saved."""
    if config.planned_steps > 0:
        trainer, batches = prepare(config, images, session.compute)
        session.begin(config)
        session.train("tokenizer", trainer, batches, config.plan, config.profile)
        trained = trainer.trained
        assert isinstance(trained, ImageTokenizer)
        return trained
    tokenizer = start(config, images)
    session.begin(config)
    session.log.say(f"fitted to at most {config.init_images} images; there is nothing to train")
    if is_rank0():
        write_checkpoint(session.folder.path, 0, tokenizer, {})
    return tokenizer


def prepare(config: TrainTokenizer, images: AnyImages, compute: Compute) -> tuple[Trainer, Loader]:
    """A trainer at step 0, and its training batches."""
    plan, side = config.plan, config.data.side
    plan.require_images(len(images.train))
    share = plan.batch_size // world_size()
    views = TwoViews(config.crop, (side, side), jitter=config.jitter, full_decode=config.data.full_decode)
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
    """The training objective of this kind of tokenizer.

    Raises:
        UsageError: it has none, because it is fitted.
    """
    if isinstance(tokenizer, DiscreteVAE | DallETokenizer):
        return DiscreteVAEObjective(tokenizer, config.relaxation, config.plan.steps, config.likelihood)
    if isinstance(tokenizer, Quantised):
        return QuantisedObjective(tokenizer, config.likelihood)
    raise UsageError(f"a {type(config.tokenizer).__name__} tokenizer is fitted, not trained")
