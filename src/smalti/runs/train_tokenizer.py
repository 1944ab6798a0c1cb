"""`smalti train-tokenizer`: stage one, a discrete VAE on unlabelled images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smalti.core.compute import Compute, Device, Precision
from smalti.core.config import require, setting
from smalti.core.rng import permutation
from smalti.data.gallery import open_gallery
from smalti.data.load import Data, Images, StoredImages
from smalti.data.loader import Loader
from smalti.data.order import Order
from smalti.data.reading import some_squares
from smalti.data.views import NO_JITTER, ColorJitter, RandomResizedCrop, TwoViews
from smalti.evaluation.reconstruction import evaluate_tokenizer
from smalti.runs.folder import read_config
from smalti.runs.session import Session
from smalti.tokenizers.dvae import DVAE, DiscreteVAE
from smalti.training.checkpoint import load_weights, read_checkpoint
from smalti.training.loop import Plan, Trainer
from smalti.training.objectives import DiscreteVAEObjective, Relaxation
from smalti.training.optim import AdamW


@dataclass(frozen=True)
class TrainTokenizer:
    """Everything about a tokenizer run."""

    data: Data = Data()
    out: str = setting("", "the run folder to write")
    tokenizer: DVAE = DVAE()
    relaxation: Relaxation = Relaxation()
    crop: RandomResizedCrop = RandomResizedCrop()
    jitter: ColorJitter = NO_JITTER
    optimiser: AdamW = AdamW()
    plan: Plan = Plan()
    init_images: int = setting(1000, "images that the codebook is initialised from")
    ema_decay: float = setting(0.999, "a step", "DALL-E, appendix A.2")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    seed: int = setting(0, "of order, crops, noise and weights")

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
        require(0 < self.ema_decay < 1, f"ema_decay {self.ema_decay}", "choose one between 0 and 1")
        require(0 <= self.seed < 2**63, f"a seed of {self.seed}", "use 0 to 2^63 - 1")


def main(
    config: TrainTokenizer, *, resume: bool = False, images: Images | None = None, compute: Compute | None = None
) -> dict[str, Any]:
    """Train, save, measure on held-out images.

    Args:
        resume: go on with the run in `config.out`.
        images: the images of `config.data`, where they are in memory already.
        compute: where to compute, where that is settled already.

    Returns:
        The result, as written to result.json.
    """
    session = Session.open(config, resume=resume, compute=compute)
    given = config.data.open(session.log, session.folder.bad_files) if images is None else images
    if not resume:
        config = replace(config, data=config.data.settled(given))
        session.folder.write_config(config)
    session.same_images(given.train)
    trainer, batches = prepare(config, given, session.compute)
    session.train("tokenizer", trainer, batches, config.plan)
    tokenizer = trainer.trained
    assert isinstance(tokenizer, DiscreteVAE)
    measured = evaluate_tokenizer(tokenizer, given.held_out.images, session.compute)
    counts = {"train_images": len(given.train), "held_out_images": len(given.held_out), "steps": config.plan.steps}
    return session.finish(measured.as_dict() | {"vocab_size": tokenizer.vocab_size} | counts)


def prepare(config: TrainTokenizer, images: Images | StoredImages, compute: Compute) -> tuple[Trainer, Loader]:
    """A trainer at step 0, and the batches it is going to see."""
    plan, side = config.plan, config.data.side
    plan.require_images(len(images.train))
    gallery = open_gallery(
        images, TwoViews(config.crop, (side, side), jitter=config.jitter), config.data, plan.batch_size, compute.device
    )
    batches = Loader(gallery, Order(len(images.train), plan.batch_size, config.seed))
    tokenizer = config.tokenizer.build(config.seed)
    sample = some_squares(images.train, config.init_images, side)
    num_patches = len(sample) * (side // config.tokenizer.stride) ** 2
    tokenizer.initialise_from(sample, torch.from_numpy(permutation(config.seed, 0, num_patches)))
    tokenizer.to(compute.device)
    objective = DiscreteVAEObjective(tokenizer, config.relaxation, plan.steps)
    return Trainer(objective, config.optimiser, plan.steps, config.ema_decay), batches


def load_tokenizer(run: str, compute: Compute) -> DiscreteVAE:
    """The trained tokenizer of a run folder."""
    tokenizer = read_config(run, TrainTokenizer).tokenizer.build()
    load_weights(tokenizer, read_checkpoint(Path(run).expanduser()).model, run)
    return tokenizer.eval().requires_grad_(False).to(compute.device)
