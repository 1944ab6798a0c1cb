"""`smalti train-tokenizer`: stage one, an image tokenizer from unlabelled images."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.config import require
from smalti.core.contracts import Objective
from smalti.core.errors import UsageError
from smalti.core.ranks import is_rank0, rank, world_size
from smalti.core.rng import permutation
from smalti.data.load import AnyImages, InMemoryData, RunImages, require_given
from smalti.data.loader import Loader, Sampler, open_view_source
from smalti.data.reading import sample_squares
from smalti.data.token_cache import network_digest
from smalti.data.transforms.views import TwoViews
from smalti.distributed.collectives import from_rank0
from smalti.evaluation.reconstruction import describe_training, evaluate_tokenizer
from smalti.evaluation.token_sample import some_images
from smalti.models.vit import VisionTransformer
from smalti.report.pictures import PICTURES, thumbnails, to_pixels
from smalti.runs.session import Session
from smalti.runs.teachers import read_teacher
from smalti.runs.train_tokenizer_config import TrainTokenizer as TrainTokenizer
from smalti.tokenizers.dalle import DallETokenizer
from smalti.tokenizers.dvae import DiscreteVAE
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.tokenizers.kmeans_features import KMeansFeatureTokenizer
from smalti.tokenizers.quantised import Quantised
from smalti.tokenizers.teacher_features import TeacherBased
from smalti.tokenizers.vqkd import VQKD, VQKDTokenizer
from smalti.training.checkpoint import load_frozen, read_checkpoint_on_rank0, write_checkpoint
from smalti.training.objectives import DiscreteVAEObjective, FeatureReconstruction, QuantisedObjective
from smalti.training.tracking import Picture
from smalti.training.trainer import Trainer


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

    Raises:
        UsageError: Muon for a tokenizer that has no Transformer blocks.
    """
    require(
        config.optimiser.matrices == "adamw" or isinstance(config.tokenizer, VQKD),
        "Muon for a tokenizer without Transformer blocks",
        "use --optimiser.matrices adamw",
    )
    require_given(images, config.data.channels)
    with Session.open(config, TrainTokenizer, resume=resume, compute=compute, allow_inexact=allow_inexact) as session:
        return _run(config, session, images)


def _run(config: TrainTokenizer, session: Session, images: InMemoryData | None) -> dict[str, Any]:
    """The run, in a run folder that this process has locked."""
    teacher, window = None, None
    if isinstance(config.tokenizer, TeacherBased) and (config.planned_steps or not session.resumed):
        read, data, teacher, window = read_teacher(config.tokenizer, config.data, session.compute, session.log)
        config = replace(config, data=data, tokenizer=read)
    if images is None:
        config = config.with_window(session.log, window, "its teacher")
    given = config.data.open(session.log, session.folder.bad_files) if images is None else images
    if not session.resumed:
        config = session.resolved(config, given)
        if isinstance(config.tokenizer, TeacherBased):
            config = replace(config, tokenizer=config.tokenizer.with_vocab_size(len(given.train)))
    learns_from = None if teacher is None or not config.planned_steps else network_digest(teacher)
    session.require_same_images(given.train, learns_from, "teacher")
    tokenizer = build_tokenizer(config, given, session, teacher).to(session.compute.device)
    return from_rank0(lambda: session.finish(lambda: _measure(config, given, tokenizer, session)))


def _measure(config: TrainTokenizer, given: RunImages, tokenizer: ImageTokenizer, session: Session) -> dict[str, Any]:
    """The result of the run."""
    measured = evaluate_tokenizer(
        tokenizer,
        given.held_out.images,
        session.compute,
        train=some_images(given.train, config.data.side),
        density=config.likelihood == "logit_laplace",
        labels=given.held_out.labels,
    )
    counts = {"train_images": len(given.train), "held_out_images": len(given.held_out), "steps": config.planned_steps}
    result = measured.as_dict() | {"vocab_size": tokenizer.vocab_size} | counts
    session.log.say(describe_training(result))
    return result


def build_tokenizer(
    config: TrainTokenizer, images: RunImages, session: Session, teacher: VisionTransformer | None = None
) -> ImageTokenizer:
    """The tokenizer, trained or fitted, and saved. One that was fitted before is read, as its teacher may be gone."""
    if config.planned_steps > 0:
        trainer, batches = prepare(config, images, session.compute, teacher)
        session.begin(config)
        pictures = partial(_pictures, config, images.held_out.images[:PICTURES], session)
        session.train("tokenizer", trainer, batches, config, pictures=pictures)
        trained = trainer.eval_model
        assert isinstance(trained, ImageTokenizer)
        return trained
    if session.resumed:
        saved = read_checkpoint_on_rank0(session.folder.path).model
        return load_frozen(config.tokenizer.build(), saved, config.out, session.compute.device)
    tokenizer = start(config, images, teacher)
    session.begin(config)
    session.log.say(f"fitted to at most {config.init_images} images; there is nothing to train")
    if is_rank0():
        write_checkpoint(session.folder.path, 0, tokenizer.state_dict(), {})
    return tokenizer


@torch.no_grad()
def _pictures(
    config: TrainTokenizer, held_out: Tensor, session: Session, weights: Mapping[str, Tensor]
) -> dict[str, Picture]:
    """Held-out images, and how the tokenizer with these weights decodes them."""
    compute = session.compute
    tokenizer = load_frozen(config.tokenizer.build(), dict(weights), config.out, compute.device)
    with compute.autocast():
        decoded = tokenizer.decode(tokenizer.encode(held_out.to(compute.device)))
    seen = {"original": held_out, "decoded": decoded}
    return {"reconstructions": thumbnails({name: to_pixels(x, config.data.show_channels) for name, x in seen.items()})}


def prepare(
    config: TrainTokenizer, images: AnyImages, compute: Compute, teacher: VisionTransformer | None = None
) -> tuple[Trainer, Loader]:
    """A trainer at step 0, and its training batches."""
    plan, side = config.plan, config.data.side
    plan.require_images(len(images.train))
    share = plan.batch_size // world_size()
    views = TwoViews(config.crop, (side, side), jitter=config.jitter, full_decode=config.data.full_decode)
    order = Sampler(len(images.train), plan.batch_size, config.seed, (rank(), world_size()))
    batches = Loader(open_view_source(images, views, config.data, share, compute.device), order)
    tokenizer = start(config, images, teacher).to(compute.device)
    objective = build_objective(config, tokenizer, teacher)
    return Trainer(objective, config.optimiser, plan, config.ema_decay), batches


def start(config: TrainTokenizer, images: AnyImages, teacher: VisionTransformer | None = None) -> ImageTokenizer:
    """The tokenizer at step 0, initialised from some of the training images."""
    side, tokenizer, count = config.data.side, config.tokenizer.build(config.seed), config.init_images
    if count == 0:
        return tokenizer
    if isinstance(config.tokenizer, TeacherBased):
        count = min(count, config.tokenizer.max_fit_images)
    sample = sample_squares(images.train, count, side)
    if isinstance(tokenizer, KMeansFeatureTokenizer | VQKDTokenizer):
        assert teacher is not None
        tokenizer.fit_to_teacher(teacher, sample)
    num_patches = len(sample) * (side // tokenizer.stride) ** 2
    tokenizer.initialise_from(sample, torch.from_numpy(permutation(config.seed, 0, num_patches)))
    return tokenizer


def build_objective(
    config: TrainTokenizer, tokenizer: ImageTokenizer, teacher: VisionTransformer | None = None
) -> Objective:
    """The training objective of this kind of tokenizer.

    Raises:
        UsageError: it has none, because it is fitted.
    """
    if isinstance(tokenizer, DiscreteVAE | DallETokenizer):
        return DiscreteVAEObjective(tokenizer, config.relaxation, config.plan.steps, config.likelihood)
    if isinstance(tokenizer, Quantised):
        return QuantisedObjective(tokenizer, config.likelihood)
    if isinstance(tokenizer, VQKDTokenizer):
        assert teacher is not None
        return FeatureReconstruction(tokenizer, teacher)
    raise UsageError(f"a {type(config.tokenizer).__name__} tokenizer is fitted, not trained")
