"""`smalti pretrain`: stage two, masked image modeling on the tokens of a trained tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from smalti.core.compute import Compute, Device, Precision
from smalti.core.config import require, setting
from smalti.core.contracts import Batch, Batches
from smalti.core.errors import SmaltiError
from smalti.core.log import Log
from smalti.core.ranks import rank, world_size
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.memory import InMemoryDataset
from smalti.data.load import AnyImages, Data, InMemoryData, RunImages
from smalti.data.loader import InMemoryViewSource, Loader, Sampler, open_view_source
from smalti.data.reading import Normalisation, statistics
from smalti.data.tokens.token_cache import CachedTokens, TokenCache
from smalti.data.tokens.token_key import token_key
from smalti.data.tokens.tokens import Scorer, Tokenized, TokenizedOnce, chunk_for, encode, token_view, tokenized
from smalti.data.transforms.views import NO_JITTER, ColorJitter, RandomResizedCrop, TwoViews, WholeImage
from smalti.distributed.collectives import Ranks, from_rank0, process_group
from smalti.evaluation.bound import two_stage_bound
from smalti.evaluation.masked_loss import evaluate_mim, evaluate_pixels
from smalti.evaluation.reference_curves import FLAT_PATCH
from smalti.functional.masking import Blockwise, Random, Rolled
from smalti.functional.metrics import entropy
from smalti.functional.published_masking import Algorithm1, Release
from smalti.models.mim import MaskedImageModel, build_mim
from smalti.models.vit import ViT
from smalti.runs.collapse_check import gate, some_images
from smalti.runs.folder import holds_run, read_config, writing
from smalti.runs.online_knn import Online, online_probe
from smalti.runs.reference_curve import ReferenceComparison, nearest_run, setup_of
from smalti.runs.session import Session
from smalti.runs.train_tokenizer import has_density, load_tokenizer
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.training.checkpoint import load_weights, read_checkpoint
from smalti.training.compilation import Compile, compile_blocks, should_compile
from smalti.training.init_weights import init_from_weights
from smalti.training.mim import MaskedImageModeling
from smalti.training.optim import AdamW
from smalti.training.parallel import Parallel
from smalti.training.targets import Pixels, SoftTokens, Tokens
from smalti.training.trainer import Trainer
from smalti.training.training_plan import Plan
from smalti.weights.read import read_source
from smalti.weights.source import SourceWeights

_HELD_OUT_IMAGES = 5000
"""Held-out images the final loss is measured on, at most."""


@dataclass(frozen=True)
class Pretrain:
    """Everything about a pretraining run."""

    data: Data = Data()
    tokenizer: str = setting("", "the run folder of the tokenizer")
    accept_tokenizer: bool = setting(False, "go on with a tokenizer that looks collapsed")
    out: str = setting("", "the run folder to write")
    init_from: str = setting(
        "", "weights to start from: a pretraining run, or a ViT or BEiT of timm or transformers; empty: drawn"
    )
    freeze_backbone_steps: int = setting(0, "first steps in which only mask token and head learn; with init_from")
    backbone: ViT = ViT()
    masking: Blockwise | Rolled | Release | Algorithm1 | Random = Blockwise()
    target: Tokens | SoftTokens | Pixels = Tokens()
    equal_images: bool = setting(
        False, "the mean of each image counts the same; else every masked patch does", "BEiT's code: every patch"
    )
    crop: RandomResizedCrop = RandomResizedCrop()
    jitter: ColorJitter = ColorJitter()
    num_views: int | None = setting(
        None, "views of an image, in turn; it changes training: less variety, but a token cache pays; none: always new"
    )
    token_cache: str = setting("", "a folder that keeps visual tokens, also those of smalti tokenize; empty: none")
    normalisation: Normalisation | None = setting(
        None, "of pixels: half (0.5), imagenet, auto (measured); none: backbone.mean and backbone.std as they are"
    )
    optimiser: AdamW = AdamW()
    plan: Plan = Plan()
    online: Online = Online()
    reference: bool = setting(True, "say where the loss lies beside the nearest of our own runs")
    compile: Compile = setting("auto", "whether to compile the blocks; auto: where it pays")
    ema_decay: float | None = setting(None, "a step; none: no averaging")
    profile: int = setting(0, "steps to record: profile.json in the run folder, and a table; 0: none")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    seed: int = setting(0, "of order, crops, masks and weights")
    parallel: Parallel = setting("ddp", "of several processes: a copy of the network each, or with fsdp a part")
    ranks: Ranks = Ranks()

    def __post_init__(self) -> None:
        require(
            self.data.channels == self.backbone.in_chans,
            f"data.channels {self.data.channels} and backbone.in_chans {self.backbone.in_chans} differ",
        )
        self.masking.count(self.backbone.grid)  # raises where there are not that many patches to mask
        require(self.num_views is None or self.num_views >= 1, f"num_views is {self.num_views}", "use at least 1")
        require(self.ema_decay is None or 0 < self.ema_decay < 1, f"ema_decay {self.ema_decay}", "use one in (0, 1)")
        require(
            self.freeze_backbone_steps >= 0, f"freeze_backbone_steps is {self.freeze_backbone_steps}", "use at least 0"
        )
        require(
            bool(self.init_from) or self.freeze_backbone_steps == 0,
            f"freeze_backbone_steps is {self.freeze_backbone_steps}, and the backbone starts from nothing",
            "use --init-from MODEL too",
        )
        require(self.profile >= 0, f"profile is {self.profile}", "use 0 or more steps")
        require(0 <= self.seed < 2**63, f"a seed of {self.seed}", "use 0 to 2^63 - 1")
        require(
            not self.token_cache or isinstance(self.target, Tokens),
            f"a token cache serves no {type(self.target).__name__}: it holds the most likely token of each patch",
            "leave --token-cache out, or use --target tokens",
        )
        require(
            not self.tokenizer or not isinstance(self.target, Pixels),
            "pixels are predicted without a tokenizer",
            "leave --tokenizer out",
        )


def main(
    config: Pretrain,
    *,
    resume: bool = False,
    allow_inexact: bool = False,
    images: InMemoryData | None = None,
    compute: Compute | None = None,
) -> dict[str, Any]:
    """Train, save, measure loss and bound on held-out images. Arguments as in `train_tokenizer.main`.

    Raises:
        UsageError: the tokenizer has no posterior, and the target asks for it.
        RefusedError: the tokenizer has collapsed (`gate.py`), and `accept_tokenizer` is not set.
    """
    with process_group(config.ranks, config.device), writing(config.out):
        session = Session.open(config, resume=resume, compute=compute, allow_inexact=allow_inexact)
        return _run(config, session, images)


def _run(config: Pretrain, session: Session, images: InMemoryData | None) -> dict[str, Any]:
    """The run, in a folder that nobody else writes."""
    tokenizer = target_tokenizer(config, session.compute)
    source = None if session.resumed or not config.init_from else source_of(config, tokenizer, session.compute)
    given = config.data.open(session.log, session.folder.bad_files) if images is None else images
    if not session.resumed:
        config = session.settled(with_statistics(replace(config, data=config.data.settled(given)), given))
        session.folder.write_config(config)
    session.same_images(given.train)
    beside = _looked_at(config, given, tokenizer, session)
    evaluation = online_probe(config.online, config.backbone, config.data, session.compute, session.log)
    trainer, batches = prepare(config, given, tokenizer, session.compute, session.log, source)
    session.train("pretrain", trainer, batches, config.plan, config.profile, evaluation=evaluation, remark=beside)
    result: dict[str, Any] = from_rank0(lambda: session.finish(_measured(config, given, tokenizer, session, beside)))
    return result


def _looked_at(
    config: Pretrain, given: RunImages, tokenizer: ImageTokenizer | None, session: Session
) -> ReferenceComparison | None:
    """Refuse a collapsed tokenizer, and find the run of ours that is nearest, where one is wanted and there is one."""
    compute, log, vocab_size, baseline = session.compute, session.log, None, FLAT_PATCH
    if tokenizer is not None:
        train = token_views(config, given.train, tokenizer)
        if not session.resumed:
            held_out = token_views(config, given.held_out, tokenizer)
            gate(tokenizer, held_out, train, compute, log, accept=config.accept_tokenizer)
        vocab_size, baseline = tokenizer.vocab_size, float(entropy(_token_counts(train, tokenizer, compute)))
    setup = setup_of(config.target, config.backbone, config.masking, config.plan, vocab_size)
    reference = nearest_run(setup) if config.reference else None
    if setup is None or reference is None:
        return None
    beside = ReferenceComparison(reference, setup, baseline, config.plan.batch_size)
    log.say(f"reference: {beside.describe()}")
    return beside


def _measured(
    config: Pretrain,
    given: RunImages,
    tokenizer: ImageTokenizer | None,
    session: Session,
    beside: ReferenceComparison | None,
) -> dict[str, Any]:
    """The result of the run, from its last checkpoint."""
    model = load_model(config.out, session.compute)
    measured = measure(config, model, given, tokenizer, session.compute)
    session.log.say(describe_loss(measured))
    if beside is not None:
        session.log.say(beside.describe_end(measured))
    counts = {"train_images": len(given.train), "held_out_images": len(given.held_out), "steps": config.plan.steps}
    return measured | counts


def describe_loss(measured: Mapping[str, Any]) -> str:
    """One line: whether the loss is worth anything."""
    if "pixel_loss" in measured:
        return (
            f"held-out images: loss {measured['pixel_loss']:.4f} per masked patch; patches of one colour cost"
            f" {measured['flat_pixel_loss']:.4f}, copies of the nearest visible patch"
            f" {measured['neighbour_pixel_loss']:.4f}"
        )
    soft = f", {measured['kl_nats']:.3f} above the posterior's own entropy" if "kl_nats" in measured else ""
    return (
        f"held-out images: loss {measured['loss_nats']:.3f} nats per masked token{soft}; unigram entropy"
        f" {measured['unigram_entropy_nats']:.3f}, copying the nearest visible token"
        f" {measured['neighbour_nats']:.3f}; bits saved a token {measured['bits_saved_per_token']:.3f} and"
        f" {measured['bits_saved_over_neighbour']:.3f}; top-1 {measured['accuracy']:.1%} (copying"
        f" {measured['neighbour_accuracy']:.1%}), top-5 {measured['top5_accuracy']:.1%}"
    )


def target_tokenizer(config: Pretrain, compute: Compute) -> ImageTokenizer | None:
    """The tokenizer that the target needs; none for pixels.

    Raises:
        UsageError: it has no posterior, and the target asks for it.
    """
    if isinstance(config.target, Pixels):
        return None
    tokenizer = load_tokenizer(config.tokenizer, compute)
    require(
        isinstance(tokenizer, Scorer) or not isinstance(config.target, SoftTokens),
        f"soft targets are not to be had from {config.tokenizer}: a {type(tokenizer.config).__name__} tokenizer chooses"
        " a code and has no scores",
        "use --target tokens, or a discrete VAE",
    )
    return tokenizer


def prepare(
    config: Pretrain,
    images: AnyImages,
    tokenizer: ImageTokenizer | None,
    compute: Compute,
    log: Log | None = None,
    source: SourceWeights | None = None,
) -> tuple[Trainer, Batches]:
    """A trainer at step 0, with drawn weights or those of `source`, and the batches it is going to see."""
    plan = config.plan
    plan.require_images(len(images.train))
    model = build_mim(config.backbone, num_outputs(config, tokenizer), config.seed).to(compute.device)
    if source is not None:
        (log or Log()).say(init_from_weights(model, source))
    objective = MaskedImageModeling(model, config.target, config.equal_images)
    frozen, steps = model.backbone.parameters(), config.freeze_backbone_steps
    trainer = Trainer(
        objective, config.optimiser, plan, config.ema_decay, frozen=frozen, frozen_steps=steps, parallel=config.parallel
    )
    if should_compile(config.compile, plan.steps, compute.device):
        compile_blocks(model.backbone.blocks)
    if tokenizer is None or not config.token_cache:
        loader = training_loader(config, images, tokenizer, compute)
        return trainer, with_targets(config, loader, tokenizer, compute)
    cache = open_cache(config, Path(config.token_cache).expanduser(), images, tokenizer, compute)
    loader = training_loader(config, images, tokenizer, compute)
    return trainer, CachedTokens(loader, tokenizer, compute, cache, log or Log())


def source_of(config: Pretrain, tokenizer: ImageTokenizer | None, compute: Compute) -> SourceWeights:
    """The weights at `init_from`, which fit the backbone.

    The head of a run comes along where it predicts the same: the tokens of the same tokenizer, or pixels likewise.
    That of another program comes along where it has as many outputs as there are visual tokens.

    Raises:
        UsageError: the configured backbone is another one.
        CheckpointError: there are no weights, or of no network that is known.
    """
    if holds_run(config.init_from):
        run = read_config(config.init_from, Pretrain)
        weights = read_checkpoint(Path(config.init_from).expanduser()).model
        source = SourceWeights(config.init_from, weights, run.backbone.grid, run.backbone.num_heads)
        same = run.target == config.target if tokenizer is None else _is_tokenizer(run.tokenizer, tokenizer, compute)
    else:
        source, same = read_source(config.init_from), tokenizer is not None
    source.require_fit(config.backbone)
    return source if same else source.without_head()


def _is_tokenizer(run: str, tokenizer: ImageTokenizer, compute: Compute) -> bool:
    """Whether the tokenizer of a run folder is this one, by its weights; not where it is gone or there was none."""
    try:
        theirs, ours = load_tokenizer(run, compute).state_dict(), tokenizer.state_dict()
    except SmaltiError:
        return False
    return theirs.keys() == ours.keys() and all(torch.equal(value, ours[name]) for name, value in theirs.items())


def num_outputs(config: Pretrain, tokenizer: ImageTokenizer | None) -> int:
    """Width of the head: visual tokens, or the numbers in a patch."""
    return config.backbone.in_chans * config.backbone.patch_size**2 if tokenizer is None else tokenizer.vocab_size


def with_targets(config: Pretrain, loader: Loader, tokenizer: ImageTokenizer | None, compute: Compute) -> Batches:
    """Batches with what is to be predicted; pixels are in them already."""
    if tokenizer is None:
        return loader
    chunk, posterior = chunk_for(config.plan.batch_size), isinstance(config.target, SoftTokens)
    return Tokenized(loader, tokenizer, compute, chunk, posterior)


def training_loader(config: Pretrain, images: AnyImages, tokenizer: ImageTokenizer | None, compute: Compute) -> Loader:
    """Batches of the images to learn from, without tokens."""
    views, size = _views(config, config.crop, config.jitter, tokenizer), config.plan.batch_size
    view_source = open_view_source(images, views, config.data, size // world_size(), compute.device)
    order = Sampler(len(images.train), size, config.seed, (rank(), world_size()), config.num_views)
    return Loader(view_source, order, config.masking, config.backbone.grid)


def open_cache(
    config: Pretrain, folder: Path, images: AnyImages, tokenizer: ImageTokenizer, compute: Compute
) -> TokenCache:
    """The token cache in `folder`, for the views of this run.

    Raises:
        DataError: it is there for other views; the message names all that differs.
    """
    views = _views(config, config.crop, config.jitter, tokenizer)
    return TokenCache(
        folder, token_key(images.train, views, config.seed, tokenizer, compute, chunk_for(config.plan.batch_size))
    )


def measure(
    config: Pretrain,
    model: MaskedImageModel,
    images: RunImages,
    tokenizer: ImageTokenizer | None,
    compute: Compute,
) -> dict[str, Any]:
    """The loss and what it has to beat, on whole held-out images under fixed masks; of tokens also the bound of both
    stages. Every masked patch counts the same."""
    config = replace(config, plan=config.plan.of_one_of(world_size()))
    loader = _held_out_loader(config, images.held_out, tokenizer)
    num_batches = max(1, min(len(images.held_out), _HELD_OUT_IMAGES) // config.plan.micro_batch_size)
    objective = MaskedImageModeling(model, config.target)
    if tokenizer is None:
        return dict(evaluate_pixels(objective, loader, num_batches, compute))
    batches = TokenizedOnce(loader, tokenizer, compute, posterior=isinstance(config.target, SoftTokens))
    measured = evaluate_mim(objective, batches, num_batches, compute)
    untrained = build_mim(config.backbone, num_outputs(config, tokenizer), config.seed).to(compute.device)
    before = evaluate_mim(MaskedImageModeling(untrained), batches, num_batches, compute)
    counts = _token_counts(token_views(config, images.train, tokenizer), tokenizer, compute)
    losses, density = (before["loss_nats"], measured["loss_nats"]), has_density(config.tokenizer)
    bound = two_stage_bound(tokenizer, batches, num_batches, counts, losses, compute, density=density)
    return measured | {"bound": bound.as_dict()}


def _token_counts(views: Tensor, tokenizer: ImageTokenizer, compute: Compute) -> Int[Tensor, "V"]:
    """How often each token occurs in `token_views` of training images, which are whole as held-out ones are."""
    ids = torch.cat([encode(part.to(compute.device), tokenizer, compute).cpu() for part in views.split(1024)])
    return torch.bincount(ids.flatten(), minlength=tokenizer.vocab_size)


def held_out_batch(
    config: Pretrain, held_out: InMemoryDataset, tokenizer: ImageTokenizer | None, compute: Compute, num_images: int
) -> Batch:
    """The first held-out images whole, with fixed masks and, where there is a tokenizer, their tokens: for pictures."""
    loader = _held_out_loader(config, held_out, tokenizer)
    index = np.arange(min(num_images, len(held_out)))
    batch = loader.at(loader.order.rows(index, np.zeros_like(index)))
    return batch.to(compute.device) if tokenizer is None else tokenized(batch, tokenizer, compute)


def token_views(config: Pretrain, images: ImageDataset, tokenizer: ImageTokenizer) -> Tensor:
    """Some images whole, as the tokenizer is going to see them: what the gate looks at."""
    some = some_images(images, config.data.side)
    loader = _held_out_loader(config, InMemoryDataset(some, torch.zeros(len(some), dtype=torch.int64)), tokenizer)
    parts = [np.arange(len(some))[start : start + 500] for start in range(0, len(some), 500)]
    return torch.cat([token_view(loader.at(loader.order.rows(part, np.zeros_like(part)))) for part in parts])


def load_model(run: str, compute: Compute) -> MaskedImageModel:
    """The trained model of a run folder, with mask token and head."""
    config = read_config(run, Pretrain)
    checkpoint = read_checkpoint(Path(run).expanduser())
    model = build_mim(config.backbone, len(checkpoint.model["head.bias"]))
    load_weights(model, checkpoint.model, run)
    return model.eval().requires_grad_(False).to(compute.device)


def _held_out_loader(config: Pretrain, held_out: InMemoryDataset, tokenizer: ImageTokenizer | None) -> Loader:
    """Held-out images whole and in their own colours, under masks that are always the same."""
    views = _views(config, WholeImage(), NO_JITTER, tokenizer)
    order = Sampler(len(held_out), config.plan.micro_batch_size, config.seed)
    return Loader(InMemoryViewSource(held_out, views), order, config.masking, config.backbone.grid)


def _views(
    config: Pretrain, crop: RandomResizedCrop | WholeImage, jitter: ColorJitter, tokenizer: ImageTokenizer | None
) -> TwoViews:
    """Both views of every crop; the token view has one visual token for each patch of the patch view."""
    if tokenizer is None:
        return TwoViews(crop, config.backbone.img_size, None, jitter)
    require(
        config.data.channels == tokenizer.config.in_chans,
        f"the tokenizer reads {tokenizer.config.in_chans} channels and data.channels is {config.data.channels}",
    )
    rows, columns = config.backbone.grid
    token_size = (rows * tokenizer.stride, columns * tokenizer.stride)
    return TwoViews(
        crop, config.backbone.img_size, None if token_size == config.backbone.img_size else token_size, jitter
    )


def with_statistics(config: Pretrain, images: RunImages) -> Pretrain:
    """The configuration with the pixel mean and standard deviation that `normalisation` asks for."""
    if config.normalisation is None:
        return config
    mean, std = statistics(config.normalisation, images.train, config.data.channels, config.data.side)
    return replace(config, backbone=replace(config.backbone, mean=mean, std=std), normalisation=None)
