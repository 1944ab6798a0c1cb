"""`smalti finetune`: train a backbone and a head on labels; the weights best on validation are tested once."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from smalti.core.compute import Compute
from smalti.core.config import require, setting
from smalti.core.contracts import Batches
from smalti.core.errors import UsageError
from smalti.core.log import Log
from smalti.core.ranks import rank, world_size
from smalti.data.datasets.layout import read_layout
from smalti.data.datasets.open import EMBEDDED
from smalti.data.duplicates import Overlap, overlap
from smalti.data.load import AnyImages, InMemoryData, require_given
from smalti.data.loader import Loader, Sampler
from smalti.data.transforms.batch_transforms import BatchTransform, Erasing, TransformedBatches
from smalti.data.transforms.randaugment import RandAugment
from smalti.data.transforms.views import NO_JITTER, ColorJitter, TwoViews
from smalti.distributed.collectives import from_rank0
from smalti.runs.classification_task import Classification
from smalti.runs.folder import holds_run, read_config, read_kind, run_folder, run_of
from smalti.runs.model_selection import BEST, Best, Choose, LabelledSplits, Measured, Shares, known_first
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.segmentation_task import Segmentation
from smalti.runs.session import Session
from smalti.runs.training_run import BackboneRun
from smalti.training.checkpoint import Checkpoint, is_checkpoint, load_frozen, read_checkpoint
from smalti.training.init_weights import init_from_weights
from smalti.training.trainer import Trainer
from smalti.weights.source import SourceWeights


@dataclass(frozen=True)
class Finetune(BackboneRun):
    """Everything about a fine-tuning run."""

    test: str = setting(
        "", "labelled images to test on, once; empty: test/ of DATA. Without either data.held-out is the test"
    )
    validation_data: str = setting(
        "", "labelled images to make choices on; empty: data.held-out where there is a test, else a share (validation)"
    )
    init: str = setting(
        "", "weights to start from: a run of pretrain or finetune, a ViT or BEiT of timm or transformers; empty: drawn"
    )
    task: Classification | Segmentation = Classification()
    freeze: bool = setting(False, "only the head learns, and the norm before it")
    jitter: ColorJitter = NO_JITTER
    augment: RandAugment = RandAugment()
    erasing: Erasing = Erasing()
    label_share: float = setting(1.0, "share of the labels of each class to learn from")
    labels_per_class: int | None = setting(None, "so many labels of each class instead; none: label_share")
    validation: float = setting(0.1, "share of the images to learn from that choices are made on; without test")
    choose: Choose = setting("best", "which of the saved weights are used: the best on validation images, or the last")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.label_share <= 1, f"a label_share of {self.label_share}", "use one in (0, 1]")
        require(
            self.labels_per_class is None or self.labels_per_class >= 1,
            f"labels_per_class is {self.labels_per_class}",
            "use at least 1",
        )
        require(
            self.labels_per_class is None or not self.task.multi_label,
            "labels_per_class where images have several labels",
            "use --label-share",
        )
        require(0 < self.validation < 1, f"a validation share of {self.validation}", "use one in (0, 1)")

    def read_weights(self, run: Path) -> Checkpoint:
        """The selected weights of a finished run; of one checkpoint those in it."""
        return read_checkpoint(run / BEST if self.choose == "best" and not is_checkpoint(run) else run)

    def split_images(self, given: AnyImages, log: Log) -> LabelledSplits:
        """The training, validation and test images."""
        shares = Shares(self.validation, self.label_share, self.labels_per_class, self.seed)
        test = self.test or read_layout(self.data.path, self.data.follow_links).test
        return self.task.divide(given, self.data, test, self.validation_data, shares, log)


def main(
    config: Finetune,
    *,
    resume: bool = False,
    allow_inexact: bool = False,
    images: InMemoryData | None = None,
    compute: Compute | None = None,
) -> dict[str, Any]:
    """Train, select the weights on validation images, and test them once.

    Args:
        resume: resume the run in `config.out`.
        allow_inexact: resume even if that is not possible bit for bit.
        images: the images of `config.data`, if they are in memory already; `held_out` is the test set, unless there is
            `config.test`.
        compute: where to compute, if that is already decided.

    Returns:
        The result, as written to result.json.

    Raises:
        DataError: there are no labels.
        CheckpointError: `config.init` has no weights, or those of an unknown network.
    """
    require_given(images, config.data.channels)
    with Session.open(config, Finetune, resume=resume, compute=compute, allow_inexact=allow_inexact) as session:
        return _run(config, session, images)


def _run(config: Finetune, session: Session, images: InMemoryData | None) -> dict[str, Any]:
    """The run, in a run folder that this process has locked."""
    if images is None:
        before = _run_at(config.init).data.window if holds_run(config.init) else None
        config = config.with_window(session.log, before, config.init, config.task.images_of(config.data.path))
    given: AnyImages = (
        config.task.open(config.data, session.log, session.folder.bad_files) if images is None else images
    )
    config = replace(config, task=config.task.resolved(given.train))
    if isinstance(config.task, Classification) and not config.task.multi_label:
        known = session.folder.read_classes() if session.resumed else ()
        given = known_first(given, known or known_outputs(config))
    parts = config.split_images(given, session.log)
    outputs = config.task.outputs(parts.classes)
    source = None if session.resumed or not config.init else init_source(config, outputs)
    if not session.resumed:
        config = resolved(session.resolved(config, given), given, session.log)
        config.say_enlarged(given.train, session.log)
    session.require_same_images(given.train)
    trainer, batches = prepare(config, parts, session.compute, session.log, source)
    session.begin(config, outputs)

    def measure(network: nn.Module) -> Measured:
        return config.task.measure(network, parts.validation, outputs, config.backbone.img_size, session.compute)

    best = Best(session.folder, session.log, measure, config.task.score)
    look = (lambda at: from_rank0(lambda: best.look(at))) if config.choose == "best" else None
    session.train("finetune", trainer, batches, config, look)
    del trainer, batches  # their memory is needed to measure
    weights = BEST if config.choose == "best" else ""
    return from_rank0(lambda: session.finish(lambda: _measure(config, parts, session), weights))


def _overlap(config: Finetune, parts: LabelledSplits) -> Overlap:
    """How many test images are training images too; of a test that is a share of streamed images none are."""
    train, test = parts.train.train, parts.test
    if train.pixels is None and test.pixels is not None:
        data = config.data
        path = config.test or read_layout(data.path, data.follow_links).test_or_validation
        if not path or path == EMBEDDED:
            return Overlap(0, len(test))
        test = data.source(path)
    return overlap(train, test)


def _measure(config: Finetune, parts: LabelledSplits, session: Session) -> dict[str, Any]:
    """The result of the run, measured with the selected weights."""
    task, outputs, size = config.task, config.task.outputs(parts.classes), config.backbone.img_size
    chosen = config.read_weights(session.folder.path)
    model = task.build(config.backbone, outputs)
    model = load_frozen(model, chosen.model, config.out, session.compute.device)
    validated, tested = (
        task.measure(model, images, outputs, size, session.compute) for images in (parts.validation, parts.test)
    )
    result: dict[str, Any] = {f"validation_{name}": value for name, value in validated.scores.items()}
    result |= {f"test_{name}": value for name, value in tested.as_dict().items()}
    if isinstance(task, Segmentation):
        task.write_page(session.folder.path, model, parts.test, size, session.compute, config.data.show_channels)
    counts = {"train": parts.train.train, "validation": parts.validation, "test": parts.test}
    result |= {f"{name}_images": len(images) for name, images in counts.items()}
    result["overlap"] = _overlap(config, parts)._asdict()
    result |= {"classes": len(outputs), "steps": config.plan.steps, "chosen_step": chosen.step}
    session.log.say(describe(result, task.score))
    return result


def describe(result: dict[str, Any], score: str) -> str:
    """One line: the score, and the images it was measured on."""
    found = Overlap(**result["overlap"])
    return (
        f"step {result['chosen_step']} of {result['steps']}: {score} {result[f'validation_{score}']:.1%} on"
        f" {result['validation_images']} validation images, {result[f'test_{score}']:.1%} on {result['test_images']}"
        f" test images{f'; {found}' if found.shared else ''}"
    )


def prepare(
    config: Finetune,
    parts: LabelledSplits,
    compute: Compute,
    log: Log | None = None,
    source: SourceWeights | None = None,
) -> tuple[Trainer, Batches]:
    """A trainer at step 0, with randomly initialised weights or those of `source`, and its training batches."""
    plan, images, task = config.plan, parts.train, config.task
    plan.require_images(len(images.train))
    model = task.build(config.backbone, task.outputs(parts.classes), config.seed).to(compute.device)
    if source is not None:
        known, outputs = known_outputs(config), task.outputs(parts.classes)
        if set(known) < set(outputs):
            source = source.grown(model.state_dict(), known, outputs)
        for line in filter(None, (init_from_weights(model, source), describe_growth(config.init, known, outputs))):
            (log or Log()).say(line)
    if config.freeze:
        model.backbone.requires_grad_(False)
    trainer = Trainer(task.objective(model), config.optimiser, plan, config.ema_decay)
    config.compile_blocks(model.backbone.blocks, compute.device)
    size, full = config.backbone.img_size, config.data.full_decode
    views = TwoViews(config.crop, size, jitter=config.jitter, full_decode=full)
    view_source = task.view_source(images, views, config.data, plan.batch_size // world_size(), compute.device)
    loader = Loader(view_source, Sampler(len(images.train), plan.batch_size, config.seed, (rank(), world_size())))
    whole: tuple[BatchTransform, ...] = () if isinstance(task, Segmentation) else (config.augment, config.erasing)
    return trainer, TransformedBatches(loader, (*whole, *task.batch_transforms(parts.classes)), compute.device)


def init_source(config: Finetune, outputs: tuple[str, ...]) -> SourceWeights:
    """The weights at `init`. The head of a fine-tuning run is loaded too if all of its outputs are among these.

    Raises:
        UsageError: `init` is a run of another kind.
    """
    run = _run_at(config.init) if holds_run(config.init) else None
    known = known_outputs(config)
    return config.source(config.init, run, known == outputs or (bool(known) and set(known) < set(outputs)))


def known_outputs(config: Finetune) -> tuple[str, ...]:
    """The outputs of the run at `init`, if it was fine-tuned for the same kind of task; else none."""
    if not holds_run(config.init) or read_kind(config.init) != Finetune.__name__:
        return ()
    same = type(read_config(config.init, Finetune).task) is type(config.task)
    return run_folder(config.init).read_classes() if same else ()


def describe_growth(init: str, known: tuple[str, ...], outputs: tuple[str, ...]) -> str:
    """One line on what becomes of the classes of the run at `init`; empty where they are the same, or others."""
    lacking = [name for name in known if name not in set(outputs)]
    new = [name for name in outputs if name not in set(known)]
    if not lacking and known and new:
        first = f"{', '.join(new[:3])} and {len(new) - 3} more" if len(new) > 3 else ", ".join(new)
        return f"the {len(known)} classes of {init} keep their numbers and rows of the head; new: {first}"
    if lacking and len(lacking) < len(known):
        what = f"{len(lacking)} of the {len(known)} classes of {init} are not in these images, first '{lacking[0]}'"
        return f"{what}: the head and the numbers of classes are new"
    return ""


def _run_at(init: str) -> "Pretrain | Finetune":
    """The configuration of the run to start from."""
    kind = read_kind(init)
    if kind == Finetune.__name__:
        return read_config(init, Finetune)
    if kind == Pretrain.__name__:
        return read_config(init, Pretrain)
    fix = "give a run of pretrain or finetune"
    raise UsageError(f"{init} is {run_of(kind)}", cause="there is no backbone in it", fix=fix)


def resolved(config: Finetune, images: AnyImages, log: Log) -> Finetune:
    """The configuration with the pixel mean and standard deviation that `normalisation` asks for, or `init` has."""
    if config.normalisation is not None or not holds_run(config.init):
        return config.normalised(images.train)
    theirs = _run_at(config.init).backbone
    mean, std = theirs.mean, theirs.std
    if (mean, std) != (config.backbone.mean, config.backbone.std):
        log.say(f"pixels as {config.init} sees them: mean {mean}, standard deviation {std}")
    return replace(config, backbone=replace(config.backbone, mean=mean, std=std))
