"""`smalti pretrain`: stage two, masked image modeling on the tokens of a trained tokenizer."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.config import kind_name, require, setting
from smalti.core.contracts import Batches
from smalti.core.errors import CheckpointError, StoppedError
from smalti.core.files import sha256
from smalti.core.log import Log
from smalti.core.ranks import world_size
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import AnyImages, InMemoryData, RunImages
from smalti.data.token_cache import network_digest
from smalti.data.transforms.views import ColorJitter
from smalti.data.values import AskedWindow
from smalti.distributed.collectives import from_rank0
from smalti.evaluation.inpainting import Inpainter
from smalti.evaluation.pretraining import measure, token_counts, token_views
from smalti.evaluation.reference_curves import FLAT_PATCH
from smalti.evaluation.token_sample import some_labels
from smalti.functional.masking import Blockwise, Random, Rolled
from smalti.functional.metrics import entropy
from smalti.functional.published_masking import Algorithm1, Release
from smalti.models.decoder import CrossAttention, Linear
from smalti.models.mim import build_mim, inference_weights
from smalti.models.patch_aggregation import PatchAggregation
from smalti.report.pictures import PICTURES, thumbnails
from smalti.runs import train_tokenizer
from smalti.runs.folder import ROUNDS, finished_result, holds_run, is_run, read_config, remove_unstarted
from smalti.runs.hooks import Baselines
from smalti.runs.inpainting_pictures import completions
from smalti.runs.pretraining_checks import Online, ReferenceComparison, comparison_of, gate, online_probe
from smalti.runs.session import Session
from smalti.runs.tokenizers import has_density, is_tokenizer, load_tokenizer, target_tokenizer, tokenizer_data
from smalti.runs.train_tokenizer import TrainTokenizer
from smalti.runs.training_run import BackboneRun, TrainingRun
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.tokenizers.kmeans_features import KMeansFeatures
from smalti.tokenizers.teacher_features import FIT_IMAGES
from smalti.training.checkpoint import load_frozen, read_checkpoint
from smalti.training.init_weights import init_from_weights
from smalti.training.masked_batches import MaskedViews, training_batches
from smalti.training.objectives import MaskedImageModeling
from smalti.training.parallel import Parallel
from smalti.training.targets import CompiledTokens, Pixels, SoftTokens, Tokens
from smalti.training.tracking import Picture
from smalti.training.trainer import Trainer
from smalti.weights.source import SourceWeights

R = TypeVar("R", bound=TrainingRun)


@dataclass(frozen=True)
class Pretrain(BackboneRun):
    """Everything about a pretraining run."""

    tokenizer: str = setting("", "the run folder of the tokenizer", resume="digest")
    second_tokenizer: str = setting(
        "", "a run folder whose tokens are predicted too, by a head of their own; empty: none", resume="digest"
    )
    accept_tokenizer: bool = setting(False, "go on with a tokenizer that looks collapsed", resume="free")
    init_from: str = setting("", "start from: a run, or a ViT or BEiT of timm or transformers; empty: drawn")
    freeze_backbone_steps: int = setting(0, "first steps in which only mask token and head learn; with init_from")
    masking: Blockwise | Rolled | Release | Algorithm1 | Random = Blockwise()
    decoder: Linear | CrossAttention = Linear()
    target: Tokens | SoftTokens | Pixels = Tokens()
    patch_aggregation: PatchAggregation = PatchAggregation()
    equal_images: bool = setting(False, "each image counts the same; else each masked patch", "BEiT's code: patches")
    jitter: ColorJitter = ColorJitter()
    num_views: int | None = setting(None, "views of an image, in turn, so that a token cache pays; none: always new")
    masks_per_image: int = setting(
        1, "masks of a view, tokenized once; a batch counts each as an image", "data2vec 2.0"
    )
    fp32_tokens: bool = setting(
        False, "the tokenizer computes in float32; else as the run does", "released code: outside autocast"
    )
    token_cache: str = setting("", "a folder of visual tokens, as of smalti tokenize; empty: none", resume="free")
    online: Online = Online()
    rounds: int = setting(1, "the steps in so many runs; each predicts clusters of the features of the one before")
    rounds_go_on: bool = setting(False, "each round starts from the weights of the one before; else from new ones")
    reference: bool = setting(True, "say where the loss lies beside the nearest of our own runs", resume="free")
    parallel: Parallel = setting("ddp", "of several processes: a copy of the network each, or with fsdp a part")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.masking.count(self.backbone.grid)  # raises if the grid has fewer patches than are to be masked
        self.decoder.num_visible(self.masking, self.backbone.grid)  # raises if the number is not determined
        if self.patch_aggregation.depth:
            self.patch_aggregation.layer_of(self.backbone)  # raises if there is no such block
            mixed = isinstance(self.decoder, CrossAttention) and self.decoder.mix_layers
            require(not mixed, "patch aggregation, and a decoder that mixes layers", "leave one of them out")
        require(self.num_views is None or self.num_views >= 1, f"num_views is {self.num_views}", "use at least 1")
        require(
            self.masks_per_image >= 1 and self.plan.batch_size % self.masks_per_image == 0,
            f"masks_per_image is {self.masks_per_image}, and a batch has {self.plan.batch_size} images",
            "use a divisor of --plan.batch-size",
        )
        frozen = f"freeze_backbone_steps is {self.freeze_backbone_steps}"
        require(self.freeze_backbone_steps >= 0, frozen, "use at least 0")
        require(
            bool(self.init_from) or self.freeze_backbone_steps == 0,
            f"{frozen}, and the backbone starts from nothing",
            "use --init-from MODEL too",
        )
        require(
            not self.token_cache or isinstance(self.target, Tokens),
            f"a token cache serves no {type(self.target).__name__}: it holds the most likely token of each patch",
            "leave --token-cache out, or use --target tokens",
        )
        require(
            self.rounds == 1 or 2 <= self.rounds <= self.plan.steps, f"rounds is {self.rounds}", "use 1 to --plan.steps"
        )
        require(
            self.rounds == 1 or not self.token_cache,
            "a token cache holds the tokens of one round",
            "leave --token-cache out, or begin each round by itself",
        )
        require(
            not self.second_tokenizer or (isinstance(self.target, Tokens) and self.rounds == 1),
            f"a second tokenizer, with target {kind_name(type(self.target))} and {self.rounds} rounds",
            "it is for --target tokens and a single round",
        )
        pixels = isinstance(self.target, Pixels)
        require(not (self.tokenizer and pixels), "pixels are predicted without a tokenizer", "leave --tokenizer out")

    def compiles_loss(self, device: torch.device) -> bool:
        """Whether the loss is compiled too. With mask tokens in the encoder it never is: such runs keep their bits."""
        return isinstance(self.decoder, CrossAttention) and isinstance(self.target, Tokens) and self.compiles(device)

    def views(self, tokenizer: ImageTokenizer | None, second: ImageTokenizer | None = None) -> MaskedViews:
        """The views of images that the run uses."""
        return MaskedViews(
            self.crop,
            self.jitter,
            self.masking,
            self.backbone,
            tokenizer,
            self.seed,
            self.num_views,
            self.masks_per_image,
            self.data.full_decode,
            self.fp32_tokens,
            second,
        )


def main(
    config: Pretrain,
    *,
    resume: bool = False,
    allow_inexact: bool = False,
    images: InMemoryData | None = None,
    compute: Compute | None = None,
) -> dict[str, Any]:
    """Train, save, and measure loss and bound on held-out images. Arguments as in `train_tokenizer.main`.

    Raises:
        CheckpointError: the tokenizer of a run that goes on is not where it was.
        UsageError: there is no tokenizer, or the target needs a posterior, and the tokenizer has none.
        RefusedError: the tokenizer has collapsed (`pretraining_checks.gate`), and `accept_tokenizer` is not set.
    """
    with Session.open(config, resume=resume, compute=compute, allow_inexact=allow_inexact) as session:
        if config.rounds > 1 and not session.resumed:
            config = _run_earlier_rounds(config, session, images)
        return _run(config, session, images)


def _run_earlier_rounds(config: Pretrain, session: Session, images: InMemoryData | None) -> Pretrain:
    """The configuration of the last of several rounds, an ordinary run, once those before it are complete.

    They are in the folder `rounds` of the run, each with the tokens that are made of it. Each goes on by itself from
    where it was, so that the whole does. An even share of the steps is for each round.
    """
    place = f"{config.out}/{ROUNDS}"
    tokenizer, target, init_from, left = config.tokenizer, config.target, config.init_from, config.plan.steps
    for number in range(1, config.rounds):
        plan = replace(config.plan, steps=config.plan.steps // config.rounds)
        first = replace(config, rounds=1, tokenizer=tokenizer, target=target, init_from=init_from, plan=plan)
        first = _resumed_config(replace(first, out=f"{place}/{number}"))
        session.log.say(f"round {number} of {config.rounds}: {first.out}")
        _run_or_resume(main, first, session, images)
        left -= first.plan.steps
        tokens = TrainTokenizer(
            data=config.data,
            out=f"{place}/{number}-tokens",
            precision=config.precision,
            device=config.device,
            seed=config.seed,
            ranks=config.ranks,
            tokenizer=KMeansFeatures(first.out),
            init_images=FIT_IMAGES,
        )
        tokens = _resumed_config(tokens)
        _run_or_resume(train_tokenizer.main, tokens, session, images)
        tokenizer, init_from = tokens.out, first.out if config.rounds_go_on else ""
        target = target if isinstance(target, Tokens) else Tokens()
        config = replace(config, freeze_backbone_steps=0)
    session.log.say(f"round {config.rounds} of {config.rounds}: {config.out}")
    plan = replace(config.plan, steps=max(1, left))
    return replace(config, rounds=1, tokenizer=tokenizer, target=target, init_from=init_from, plan=plan)


def _resumed_config(config: R) -> R:
    """The configuration of the run that is already in the folder, to be resumed; else the given one."""
    return replace(read_config(config.out, type(config)), out=config.out) if is_run(config.out) else config


def _run_or_resume(run: Callable[..., dict[str, Any]], config: TrainingRun, session: Session, images: Any) -> None:
    """Run an earlier round, or resume it; nothing where it is finished."""
    begun = is_run(config.out)
    if begun and from_rank0(lambda: finished_result(config.out, config, config)) is not None:
        return
    try:
        run(config, resume=begun, allow_inexact=session.allow_inexact, images=images, compute=session.compute)
    except StoppedError as stop:
        fix = stop.fix.replace(shlex.quote(config.out), shlex.quote(str(session.folder.path)))
        raise StoppedError(stop.what, cause=stop.cause, fix=fix, exit_code=stop.exit_code) from stop
    except BaseException:
        if not begun:
            remove_unstarted(config.out)
        raise


def _run(config: Pretrain, session: Session, images: InMemoryData | None) -> dict[str, Any]:
    """The run, in a run folder that this process has locked."""
    compute, log = session.compute, session.log
    require(
        bool(config.tokenizer) or isinstance(config.target, Pixels),
        "no tokenizer given",
        "give --tokenizer RUN, the folder of smalti train-tokenizer; or use --target pixels",
    )
    for flag, place in (("--tokenizer", config.tokenizer), ("--second-tokenizer", config.second_tokenizer)):
        if session.resumed and place and not is_run(place):
            what = f"the tokenizer of the run is no longer in {place}"
            raise CheckpointError(what, fix=f"say where it is now with {flag} RUN")
    tokenizer, second = (
        target_tokenizer(config.tokenizer, config.target, compute),
        load_second_tokenizer(config, compute),
    )
    source = None if session.resumed or not config.init_from else init_source(config, tokenizer, compute)
    if images is None:
        config = config.with_window(log, *_inherited_window(config, tokenizer))
    given = config.data.open(log, session.folder.bad_files) if images is None else images
    if not session.resumed:
        config = session.resolved(config, given).normalised(given.train)
        config.say_enlarged(given.train, session.log)
    session.require_same_images(given.train, _digest(tokenizer, second))
    baselines = _measure_baselines(config, given, tokenizer, session)
    if second is not None and not session.resumed:
        _measure_baselines(config, given, second, session)
    evaluation = online_probe(config.online, config.backbone, config.data, compute, log)
    trainer, batches = prepare(config, given, tokenizer, compute, log, source)
    session.begin(config)
    pictures = partial(_pictures, config, given.held_out, tokenizer, session)
    session.train("pretrain", trainer, batches, config, evaluation=evaluation, baselines=baselines, pictures=pictures)
    del trainer, batches  # their memory is needed to measure
    return from_rank0(lambda: session.finish(lambda: _measure(config, given, tokenizer, session, baselines.reference)))


def _inherited_window(config: Pretrain, tokenizer: ImageTokenizer | None) -> tuple[AskedWindow, str]:
    """The value window of the run whose tokenizer is used, or whose weights are started from, and that run."""
    if tokenizer is not None:
        before, channels = tokenizer_data(config.tokenizer, tokenizer), config.data.channels
        what = f"the tokenizer reads {before.channels} channels and data.channels is {channels}"
        require(before.channels == channels, what, f"use --data.channels and --backbone.in-chans {before.channels}")
        return before.window, config.tokenizer
    if holds_run(config.init_from):
        return read_config(config.init_from, Pretrain).data.window, config.init_from
    return None, ""


def _measure_baselines(
    config: Pretrain, given: RunImages, tokenizer: ImageTokenizer | None, session: Session
) -> Baselines:
    """Refuse a collapsed tokenizer; measure the unigram entropy of its tokens, and find the nearest reference run."""
    vocab_size, baseline = None, FLAT_PATCH
    if tokenizer is not None:
        views = config.views(tokenizer)
        compute = views.tokenizing(session.compute)
        train = token_views(views, given.train, config.data.side)
        if not session.resumed:
            held_out, labels = token_views(views, given.held_out, config.data.side), some_labels(given.held_out)
            gate(tokenizer, held_out, train, compute, session.log, accept=config.accept_tokenizer, labels=labels)
        vocab_size, baseline = tokenizer.vocab_size, float(entropy(token_counts(train, tokenizer, compute)))
    beside = comparison_of(config, vocab_size, baseline)
    if beside is not None:
        session.log.say(f"reference: {beside.describe()}")
    return Baselines(None if tokenizer is None else baseline, beside)


def _pictures(
    config: Pretrain,
    held_out: InMemoryDataset,
    tokenizer: ImageTokenizer | None,
    session: Session,
    weights: Mapping[str, Tensor],
) -> dict[str, Picture]:
    """Held-out images, masked, and what the network with these weights predicts."""
    views = config.views(tokenizer)
    model = build_mim(config.backbone, views.num_outputs, decoder=config.decoder)
    model = load_frozen(model, inference_weights(weights), config.out, session.compute.device)
    inpainter = Inpainter(model, tokenizer, config.target, views, session.compute)
    seen, _ = completions(inpainter, inpainter.batch(held_out.images[:PICTURES]), config.data.show_channels)
    return {"predictions": thumbnails(seen)}


def _measure(
    config: Pretrain,
    given: RunImages,
    tokenizer: ImageTokenizer | None,
    session: Session,
    beside: ReferenceComparison | None,
) -> dict[str, Any]:
    """The result of the run, from its last checkpoint."""
    views, weights = config.views(tokenizer), read_checkpoint(session.folder.path).model
    second = load_second_tokenizer(config, session.compute)
    codes = 0 if second is None else second.vocab_size
    model = build_mim(config.backbone, views.num_outputs, 0, config.decoder, codes, config.patch_aggregation)
    model = load_frozen(model, weights, config.out, session.compute.device)
    size = config.plan.micro_batch_size // world_size()
    density = tokenizer is not None and has_density(config.tokenizer)
    measured = measure(MaskedImageModeling(model, config.target), views, given, size, session.compute, density=density)
    session.log.say(measured.loss.describe())
    result = measured.as_dict()
    if second is not None:
        model.keep_second_head()
        of, views = MaskedImageModeling(model), config.views(second)
        found = measure(of, views, given, size, session.compute, density=has_density(config.second_tokenizer))
        session.log.say(f"second tokenizer: {found.loss.describe()}")
        result |= {f"second_{name}": value for name, value in found.as_dict().items()}
    if beside is not None:
        session.log.say(beside.describe_end(measured.loss))
    counts = {"train_images": len(given.train), "held_out_images": len(given.held_out), "steps": config.plan.steps}
    return result | counts


def prepare(
    config: Pretrain,
    images: AnyImages,
    tokenizer: ImageTokenizer | None,
    compute: Compute,
    log: Log | None = None,
    source: SourceWeights | None = None,
) -> tuple[Trainer, Batches]:
    """A trainer at step 0, with randomly initialised weights or those of `source`, and its training batches."""
    plan, second, log = config.plan, load_second_tokenizer(config, compute), log or Log()
    views, codes = config.views(tokenizer, second), 0 if second is None else second.vocab_size
    plan.at_most(plan.batch_size // config.masks_per_image).require_images(len(images.train))
    model = build_mim(
        config.backbone, views.num_outputs, config.seed, config.decoder, codes, config.patch_aggregation
    ).to(compute.device)
    if source is not None:
        log.say(init_from_weights(model, source))
    target = CompiledTokens() if config.compiles_loss(compute.device) else config.target
    objective = MaskedImageModeling(model, target, config.equal_images, config.decoder.predicted)
    frozen, steps = model.backbone.parameters(), config.freeze_backbone_steps
    trainer = Trainer(
        objective, config.optimiser, plan, config.ema_decay, frozen=frozen, frozen_steps=steps, parallel=config.parallel
    )
    shallow = () if model.aggregation is None else model.aggregation.blocks
    config.compile_blocks([*model.blocks, *shallow], compute.device)
    posterior, cache = isinstance(config.target, SoftTokens), config.token_cache
    size, data = plan.batch_size, config.data
    batches = training_batches(views, images, data, size, compute, log, posterior=posterior, token_cache=cache)
    return trainer, batches


def load_second_tokenizer(config: Pretrain, compute: Compute) -> ImageTokenizer | None:
    """The second tokenizer, where there is one."""
    return load_tokenizer(config.second_tokenizer, compute) if config.second_tokenizer else None


def _digest(tokenizer: ImageTokenizer | None, second: ImageTokenizer | None) -> str | None:
    """The digest of the tokenizer, or one of both; None without any."""
    digests = [network_digest(one) for one in (tokenizer, second) if one is not None]
    return sha256(" ".join(digests).encode()) if len(digests) > 1 else next(iter(digests), None)


def init_source(config: Pretrain, tokenizer: ImageTokenizer | None, compute: Compute) -> SourceWeights:
    """The weights at `init_from`, from which the run starts.

    The head of a smalti run is loaded too if it predicts the same: tokens of the same tokenizer, or also pixels.
    That of another program is loaded if it has as many outputs as there are visual tokens.
    """
    run = read_config(config.init_from, Pretrain) if holds_run(config.init_from) else None
    if run is None:
        same = tokenizer is not None
    else:
        same = run.target == config.target if tokenizer is None else is_tokenizer(run.tokenizer, tokenizer, compute)
    return config.source(config.init_from, run, same)
