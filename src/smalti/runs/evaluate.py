"""`smalti evaluate`: evaluate a tokenizer, a backbone or a fine-tuned network on labelled or unlabelled images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smalti.core.compute import Compute, Device, Precision, choose_compute
from smalti.core.config import require, setting
from smalti.core.errors import OutputError
from smalti.core.log import Log
from smalti.core.notebook import Result
from smalti.core.ranks import is_rank0
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.datasets.folder import FollowLinks
from smalti.data.datasets.layout import read_layout
from smalti.data.datasets.open import absolute_data
from smalti.data.duplicates import overlap
from smalti.data.load import Data, InMemoryData, TrainingData, load_splits, official_splits, unlabelled
from smalti.distributed.collectives import broadcast_precision, from_rank0
from smalti.distributed.process_group import Ranks, process_group
from smalti.evaluation.battery import Battery, BatteryResult
from smalti.evaluation.features import Pooling, resized
from smalti.evaluation.pretraining import PretrainingResult, measure
from smalti.evaluation.probe import PIXELS, Split, pixel_features, untrained
from smalti.evaluation.reconstruction import TokenizerResult, evaluate_tokenizer
from smalti.evaluation.token_sample import some_images
from smalti.models.mim import MaskedImageModel
from smalti.models.vit import VisionTransformer
from smalti.runs.evaluations import write_evaluation
from smalti.runs.finetune import Finetune
from smalti.runs.folder import holds_run, is_run, read_config, read_kind, require_model_first
from smalti.runs.foreign import Statistics, read_foreign
from smalti.runs.model_selection import read_labelled
from smalti.runs.models import FinetunedResult, load_pretrained, measure_finetuned
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.session import with_null
from smalti.runs.tokenizers import has_density, load_tokenizer, target_tokenizer, tokenizer_data
from smalti.training.checkpoint import is_checkpoint, newest_step
from smalti.training.objectives import MaskedImageModeling
from smalti.training.targets import Pixels
from smalti.weights.read import is_foreign


@dataclass(frozen=True)
class Evaluate:
    """What to measure, and on which images."""

    model: str
    """A run folder; or weights of timm, transformers, unilm or lightly, of which the backbone is measured."""
    images: str
    """A folder (for probes of a backbone with class folders), or 'embedded'; of fine-tuned networks: with labels."""
    held_out: float | None = setting(None, "share of a folder's images to measure on; none: as in the model's own run")
    validation: float = setting(0.1, "share of the rest that layer and regularisation are chosen on")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    seed: int = setting(0, "of the split and of the draws of few labels")
    test: str = setting("", "DATA with the official test images; empty: the test split, else held out")
    group: str | None = setting(None, "as of training; none: as of the model, for its own images")
    follow_links: FollowLinks | None = setting(None, "links of a folder: inside, or all; none: as of the model")
    poolings: tuple[Pooling, ...] = setting(Battery().poolings, "how a layer becomes a vector; also: 2x2")
    k: int = setting(20, "neighbours that vote in k-NN")
    draws: int = setting(10, "draws of few labels")
    root: str = setting("", "the folder that the paths of a list are relative to; empty: that of the list")
    image_column: str | None = setting(
        None,
        "of a table with several columns of images: the one that is read; none: as of the model, for its own images",
    )
    baselines: bool = setting(True, "measure the same network untrained, in two initialisations, and raw pixels too")
    num_heads: int | None = setting(None, "as of smalti import; of weights of other programs")
    img_size: tuple[int, int] | None = setting(None, "as of smalti import; of weights of other programs")
    normalisation: Statistics = setting("auto", "as of smalti import; of weights of other programs")
    ranks: Ranks = Ranks()

    def __post_init__(self) -> None:
        require(self.held_out is None or 0 < self.held_out < 1, f"held_out is {self.held_out}", "choose one in (0, 1)")
        require(0 < self.validation < 1, f"validation is {self.validation}", "choose one in (0, 1)")
        for name in ("k", "draws"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}", "use at least 1")
        require(0 <= self.seed < 2**63, f"a seed of {self.seed}", "use 0 to 2^63 - 1")

    def reading(self, trained_on: Data) -> Data:
        """The images, read as those that the model was trained on."""
        follow = self.follow_links or trained_on.follow_links
        own = absolute_data(self.images) == absolute_data(trained_on.path)
        group = self.group if self.group is not None else trained_on.group if own else ""
        column = self.image_column if self.image_column is not None else trained_on.image_column if own else ""
        data = replace(trained_on, path=self.images, root=self.root, limit=None, follow_links=follow, group=group)
        return replace(data, image_column=column)


_SETTINGS = ("held_out", "validation", "group", "poolings", "k", "draws", "seed", "precision")
"""What is kept beside a result: the flags that figures depend on."""


def main(config: Evaluate) -> dict[str, Any]:
    """Evaluate, print, and keep the result in the run folder. Ranks share the pass over the images; rank 0 the rest."""
    log = Log()
    require_model_first(config.model, config.images)
    with process_group(config.ranks, config.device):
        compute = broadcast_precision(choose_compute(config.device, config.precision))
        if is_foreign(config.model) and not holds_run(config.model):
            found = _evaluate_foreign(config, compute, log)
        else:
            found = _evaluate(config, compute, log)
            if is_rank0() and not is_checkpoint(Path(config.model).expanduser()):
                _save_result(config, found, log)
    return Result(found)


def _save_result(config: Evaluate, found: Mapping[str, Any], log: Log) -> None:
    """Write the result into the run folder; it is printed already, so a folder that cannot be written is a warning."""
    run = Path(config.model).expanduser()
    settings = {name: getattr(config, name) for name in _SETTINGS}
    about = {"kind": read_kind(config.model), "step": newest_step(run), "settings": settings}
    try:
        kept = write_evaluation(run, config.images, config.test, about | {"result": with_null(found)})
    except OutputError as error:
        log.say(f"warning: the result is not kept: {error}")
    else:
        log.say(f"kept: {kept}")


def _evaluate(config: Evaluate, compute: Compute, log: Log) -> dict[str, Any]:
    kind = read_kind(config.model)
    if kind == Finetune.__name__:
        require(config.held_out is None, "held_out: a fine-tuned network is measured on all images", "leave it out")
        data = config.reading(read_config(config.model, Finetune).data)
        train, test = official_splits(config.images, config.test, data.follow_links)
        data = replace(data, path=test or train)
        return _by_rank0(lambda: measure_finetuned(config.model, data, compute, log))
    if kind != Pretrain.__name__:
        return _by_rank0(lambda: _measure_tokenizer(config, compute, log))
    trained_on = read_config(config.model, Pretrain)
    images = _load(config, trained_on.data, log)
    found = overlap(images.train, images.held_out)
    result, backbone = {}, load_pretrained(config.model, compute)
    if isinstance(backbone, MaskedImageModel):
        model, backbone = backbone, backbone.backbone
        result = _by_rank0(lambda: _measure_stages(trained_on, model, images, compute, log))
    result |= _measure_backbone(config, backbone, trained_on.data, images, compute, log)
    if found.shared and is_rank0():
        print(found)
    return result | {"overlap": found._asdict()}


def _evaluate_foreign(config: Evaluate, compute: Compute, log: Log) -> dict[str, Any]:
    """Probes of a backbone of another program; nothing is written."""
    loaded, left_out = read_foreign(config.model, config.num_heads, config.normalisation, config.img_size)
    vit = loaded.backbone.config
    size = f"{vit.img_size[0]} x {vit.img_size[1]} pixels"
    pixels = f"mean {vit.mean}, deviation {vit.std} (--normalisation)"
    log.say(f"{config.model}: a {loaded.kind} of another program, {size}, {pixels}; nothing is kept beside it")
    if left_out:
        log.say(f"left out: {', '.join(left_out[:3])}{f' and {len(left_out) - 3} more' if len(left_out) > 3 else ''}")
    data = Data(channels=vit.in_chans, side=vit.img_size[0])
    images = _load(config, data, log)
    return _measure_backbone(config, loaded.backbone.to(compute.device), data, images, compute, log)


def _by_rank0(measure: Callable[[], PretrainingResult | TokenizerResult | FinetunedResult | None]) -> dict[str, Any]:
    """What rank 0 measures and prints; others wait for it. Empty if there is nothing to measure."""

    def printed() -> dict[str, Any]:
        found = measure()
        if found is None:
            return {}
        print(found.describe())
        return found.as_dict()

    return from_rank0(printed)


def _measure_stages(
    trained_on: Pretrain, model: MaskedImageModel, images: InMemoryData, compute: Compute, log: Log
) -> PretrainingResult | None:
    """Loss and bound, as at the end of the run; None if its tokenizer no longer exists."""
    if not isinstance(trained_on.target, Pixels) and not is_run(trained_on.tokenizer):
        place = trained_on.tokenizer
        why = f"the tokenizer of the run is no longer in {place}" if place else "the weights came without a tokenizer"
        log.say(f"no loss and no bound: {why}")
        return None
    tokenizer = target_tokenizer(trained_on.tokenizer, trained_on.target, compute)
    objective, size = MaskedImageModeling(model, trained_on.target), trained_on.plan.micro_batch_size
    density = tokenizer is not None and has_density(trained_on.tokenizer)
    return measure(objective, trained_on.views(tokenizer), images, size, compute, density=density)


def _measure_backbone(
    config: Evaluate, backbone: VisionTransformer, data: Data, images: InMemoryData, compute: Compute, log: Log
) -> dict[str, Any]:
    """Probes of the frozen features, and of the same network untrained and raw pixels; empty without labels.

    Choices are made on the validation split, or where there is none on a share of the training images.
    """
    if len(images.train.classes) < 2:
        what = f"no probes: they need labels, and {config.images} has none"
        place, _ = official_splits(config.images, config.test, data.follow_links)
        log.say(f"{unlabelled(replace(data, root=config.root), place, what)}")
        return {}
    validation = _validation_images(config, data, images, log)
    images = TrainingData(images.train.labelled(), images.held_out.labelled())
    if len(images.train) < 3 or not len(images.held_out):
        found = f"{len(images.train)} to fit on and {len(images.held_out)} held out"
        log.say(f"no probes: {config.images} has {found} with labels; they need at least 3 and 1")
        return {}
    probes = _Probes(config, images, validation, compute)
    log.say(
        f"{len(images.train)} training and {len(images.held_out)} test images of {len(images.train.classes)} classes"
    )
    if validation is not None:
        log.say(f"choices are made on {len(validation)} validation images")
    result = probes.of(backbone, BatteryResult.describe)
    if not config.baselines:
        return result
    log.say("measuring the same network untrained, and raw pixels; --no-baselines leaves them out")
    starts = {name: vit.build(config.seed).to(compute.device) for name, vit in untrained(backbone.config).items()}
    beside = {name: probes.of(start.train(False)) for name, start in starts.items()}
    beside |= {PIXELS: probes.of(None)}
    if is_rank0():
        print(describe_beside(result, beside))
    return result | {"baselines": beside}


@dataclass(frozen=True)
class _Probes:
    """The battery, on some images; `validation` are those that choices are made on, None for a share of the others."""

    config: Evaluate
    images: InMemoryData
    validation: InMemoryDataset | None
    compute: Compute

    def of(
        self, backbone: VisionTransformer | None, describe: Callable[[BatteryResult], str] | None = None
    ) -> dict[str, Any]:
        """The result of a backbone, or of raw pixels; `describe` makes what rank 0 prints of it."""
        config, images, more = self.config, self.images, self.validation
        protocol = Battery(config.poolings, config.validation, config.k, config.draws)
        parts = [images.train, images.held_out, *([] if more is None else [more])]
        features = None
        if backbone is not None:
            sized = (resized(part, backbone.config.img_size) for part in parts)
            features = [protocol.features(backbone, part, self.compute) for part in sized]

        def judged() -> dict[str, Any]:
            train, test, *validation = features or [pixel_features(part) for part in parts]
            labels, groups = images.train.labels, images.train.groups
            split = None if groups is None else Split.of_groups(groups, config.validation, config.seed)
            if more is not None:
                train = {layer: torch.cat([x, validation[0][layer]]) for layer, x in train.items()}
                labels, split = torch.cat([labels, more.labels]), Split.behind(len(labels), len(more), config.seed)
            found = protocol(train, labels, test, images.held_out.labels, config.seed, split)
            if describe is not None:
                print(describe(found))
            return found.as_dict()

        return from_rank0(judged)


def describe_beside(result: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]]) -> str:
    """The network and its baselines as a table, and what pretraining is worth."""
    few = [name for name in result["few"] if name != "100 %"][-2:]
    lines = [f"{'beside it':<35} {'k-NN':>7} {'linear':>7}" + "".join(f" {name:>11}" for name in few)]
    for name, row in ({"this network": result} | dict(baselines)).items():
        cells = "".join(f" {row['few'][budget]['accuracy']:>11.1%}" for budget in few)
        lines.append(f"{name:<35} {row['knn']:>7.1%} {row['linear']:>7.1%}{cells}")
    better = max(row["linear"] for name, row in baselines.items() if name != PIXELS)
    gain = 100 * (result["linear"] - better)
    return "\n".join([*lines, f"worth {gain:+.1f} points of linear probe over the better of the untrained networks"])


def _measure_tokenizer(config: Evaluate, compute: Compute, log: Log) -> TokenizerResult:
    tokenizer, density = load_tokenizer(config.model, compute), has_density(config.model)
    data = tokenizer_data(config.model, tokenizer)
    images = _load(config, data, log)
    train, judged = some_images(images.train, data.side), images.held_out
    return evaluate_tokenizer(tokenizer, judged.images, compute, train=train, density=density, labels=judged.labels)


def _validation_images(config: Evaluate, trained_on: Data, images: InMemoryData, log: Log) -> InMemoryDataset | None:
    """The images of the validation split, for choices; None where there is none, or results are of it."""
    data = config.reading(trained_on)
    layout = read_layout(data.path, data.follow_links)
    path = layout.validation if config.test else layout.selection
    return read_labelled(path, "for choices", data, images.train.classes, tuple, log) if path else None


def _load(config: Evaluate, trained_on: Data, log: Log) -> InMemoryData:
    """The requested images, in the size and colour mode that the model was trained on."""
    held_out = trained_on.held_out if config.held_out is None else config.held_out
    data = replace(config.reading(trained_on), held_out=held_out)
    train, test = official_splits(config.images, config.test, data.follow_links)
    return load_splits(data, train, test, log) if test else data.load(log)
