"""`smalti pretrain`: stage two, masked image modeling on the tokens of a trained tokenizer."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.config import require
from smalti.core.contracts import Batches
from smalti.core.errors import CheckpointError
from smalti.core.files import sha256
from smalti.core.log import Log
from smalti.core.ranks import world_size
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import AnyImages, InMemoryData, RunImages, require_given
from smalti.data.token_cache import network_digest
from smalti.data.values import AskedWindow
from smalti.distributed.collectives import from_rank0
from smalti.evaluation.inpainting import Inpainter
from smalti.evaluation.pretraining import measure, token_counts, token_views
from smalti.evaluation.reference_curves import FLAT_PATCH
from smalti.evaluation.token_sample import some_labels
from smalti.functional.metrics import entropy
from smalti.models.mim import build_mim, inference_weights
from smalti.report.pictures import PICTURES, thumbnails
from smalti.runs.folder import holds_run, is_run, read_config
from smalti.runs.hooks import Baselines
from smalti.runs.inpainting_pictures import completions
from smalti.runs.pretrain_config import Pretrain as Pretrain
from smalti.runs.pretraining_checks import ReferenceComparison, comparison_of, gate, online_probe
from smalti.runs.rounds import run_earlier_rounds
from smalti.runs.session import Session
from smalti.runs.tokenizers import has_density, is_tokenizer, load_tokenizer, target_tokenizer, tokenizer_data
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.training.checkpoint import load_frozen, read_checkpoint
from smalti.training.init_weights import init_from_weights
from smalti.training.masked_batches import training_batches
from smalti.training.objectives import MaskedImageModeling
from smalti.training.targets import CompiledTokens, Pixels, SoftTokens
from smalti.training.tracking import Picture
from smalti.training.trainer import Trainer
from smalti.weights.source import SourceWeights


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
    require_given(images, config.data.channels)
    with Session.open(config, Pretrain, resume=resume, compute=compute, allow_inexact=allow_inexact) as session:
        if config.rounds > 1 and not session.resumed:
            config = run_earlier_rounds(config, session, images, main)
        return _run(config, session, images)


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
