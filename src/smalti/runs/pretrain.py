"""`smalti pretrain`: stage two, masked image modeling on the tokens of a trained tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smalti.core.compute import Compute, Device, Precision
from smalti.core.config import require, setting
from smalti.core.contracts import Batch
from smalti.core.rng import fold
from smalti.data.load import Data, Images
from smalti.data.loader import Loader
from smalti.data.sources import Resident
from smalti.data.tokens import Tokenized
from smalti.data.views import RandomResizedCrop, WholeImage
from smalti.evaluation.mim import evaluate_mim
from smalti.functional.masking import Blockwise, Random
from smalti.models.mim import MaskedImageModel, build_mim
from smalti.models.vit import ViT
from smalti.runs.folder import read_config
from smalti.runs.session import Session
from smalti.runs.train_tokenizer import load_tokenizer
from smalti.tokenizers.dvae import DiscreteVAE
from smalti.training.checkpoint import load_weights, read_checkpoint
from smalti.training.compilation import Compile, compile_blocks, should_compile
from smalti.training.loop import Plan, Trainer
from smalti.training.objectives import MaskedImageModeling
from smalti.training.optim import AdamW

_HELD_OUT_IMAGES = 5000
"""Held-out images the final loss is measured on, at most."""


@dataclass(frozen=True)
class Pretrain:
    """Everything about a pretraining run."""

    data: Data = Data()
    tokenizer: str = setting("", "the run folder of the tokenizer")
    out: str = setting("", "the run folder to write")
    backbone: ViT = ViT()
    masking: Blockwise | Random = Blockwise()
    crop: RandomResizedCrop = RandomResizedCrop()
    optimiser: AdamW = AdamW()
    plan: Plan = Plan()
    compile: Compile = setting("auto", "whether to compile the blocks; auto: where it pays")
    ema_decay: float | None = setting(None, "a step; none: no averaging")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    seed: int = setting(0, "of order, crops, masks and weights")

    def __post_init__(self) -> None:
        require(
            self.data.channels == self.backbone.in_chans,
            f"data.channels {self.data.channels} and backbone.in_chans {self.backbone.in_chans} differ",
        )
        require(self.ema_decay is None or 0 < self.ema_decay < 1, f"ema_decay {self.ema_decay}", "use one in (0, 1)")
        require(0 <= self.seed < 2**63, f"a seed of {self.seed}", "use 0 to 2^63 - 1")


def main(
    config: Pretrain, *, resume: bool = False, images: Images | None = None, compute: Compute | None = None
) -> dict[str, Any]:
    """Train, save, measure the loss on held-out images. Arguments as in `train_tokenizer.main`."""
    session = Session.open(config, resume=resume, compute=compute)
    tokenizer = load_tokenizer(config.tokenizer, session.compute)
    images = config.data.load(session.log, session.folder.bad_files) if images is None else images
    trainer, batches = prepare(config, images, tokenizer, session.compute)
    session.train("pretrain", trainer, batches, config.plan)
    model = load_model(config.out, session.compute)
    measured = measure(config, model, images, tokenizer, session.compute)
    counts = {"train_images": len(images.train), "held_out_images": len(images.held_out), "steps": config.plan.steps}
    return session.finish(measured | counts)


def prepare(
    config: Pretrain, images: Images, tokenizer: DiscreteVAE, compute: Compute
) -> tuple[Trainer, Callable[[int], Batch]]:
    """A trainer at step 0, and the batches it is going to see."""
    model = build_mim(config.backbone, tokenizer.vocab_size, config.seed).to(compute.device)
    loader = _loader(config, images.train, config.crop, tokenizer)
    trainer = Trainer(MaskedImageModeling(model), config.optimiser, config.plan.steps, config.ema_decay)
    if should_compile(config.compile, config.plan.steps, compute.device):
        compile_blocks(model.backbone.blocks)
    return trainer, Tokenized(loader, tokenizer, compute)


def measure(
    config: Pretrain, model: MaskedImageModel, images: Images, tokenizer: DiscreteVAE, compute: Compute
) -> dict[str, float]:
    """Loss, accuracy and unigram entropy on whole held-out images under fixed masks."""
    loader = _loader(config, images.held_out, WholeImage(), tokenizer)
    num_batches = max(1, min(len(images.held_out), _HELD_OUT_IMAGES) // config.plan.batch_size)
    return evaluate_mim(MaskedImageModeling(model), Tokenized(loader, tokenizer, compute), num_batches, compute)


def held_out_batch(
    config: Pretrain, held_out: Resident, tokenizer: DiscreteVAE, compute: Compute, num_images: int
) -> Batch:
    """The first held-out images whole, with fixed masks and their tokens: for pictures."""
    loader = _loader(config, held_out, WholeImage(), tokenizer)
    index = np.arange(min(num_images, len(held_out)))
    return Tokenized(lambda _: loader.at(index, fold(config.seed, index)), tokenizer, compute)(0)


def load_model(run: str, compute: Compute) -> MaskedImageModel:
    """The trained model of a run folder, with mask token and head."""
    config = read_config(run, Pretrain)
    checkpoint = read_checkpoint(Path(run).expanduser())
    model = build_mim(config.backbone, len(checkpoint.model["head.bias"]))
    load_weights(model, checkpoint.model, run)
    return model.eval().requires_grad_(False).to(compute.device)


def _loader(config: Pretrain, images: Resident, crop: RandomResizedCrop | WholeImage, tokenizer: DiscreteVAE) -> Loader:
    """Both views of every crop; the token view has one visual token for each patch of the patch view."""
    require(
        config.data.channels == tokenizer.config.in_chans,
        f"the tokenizer reads {tokenizer.config.in_chans} channels and data.channels is {config.data.channels}",
    )
    rows, columns = config.backbone.grid
    token_size = (rows * tokenizer.stride, columns * tokenizer.stride)
    return Loader(
        source=images,
        crop=crop,
        size=config.backbone.img_size,
        batch_size=config.plan.batch_size,
        seed=config.seed,
        token_size=None if token_size == config.backbone.img_size else token_size,
        masking=config.masking,
        grid=config.backbone.grid,
    )
