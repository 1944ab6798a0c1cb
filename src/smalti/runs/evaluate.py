"""`smalti evaluate`: what a tokenizer, a backbone or a fine-tuned network is worth on labelled or unlabelled images."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from smalti.core.compute import Compute, Device, Precision, choose_compute
from smalti.core.config import require, setting
from smalti.core.contracts import Backbone, Tokenizer
from smalti.core.log import Log
from smalti.data.datasets.memory import InMemoryDataset
from smalti.data.load import Data, InMemoryData, load_splits, official_splits
from smalti.evaluation.battery import Battery, BatteryResult
from smalti.evaluation.bound import describe
from smalti.evaluation.features import Pooling, extract
from smalti.evaluation.probe import ProbeResult, Split, probe
from smalti.evaluation.reconstruction import evaluate_tokenizer
from smalti.models.mim import MaskedImageModel
from smalti.models.vit import VisionTransformer, as_unit_range
from smalti.runs.collapse_check import some_images
from smalti.runs.finetune import Finetune
from smalti.runs.finetuned import describe_finetuned, measure_finetuned
from smalti.runs.folder import is_run, read_config, read_kind
from smalti.runs.import_tokenizer import load_dalle
from smalti.runs.pretrain import Pretrain, describe_loss, load_model, measure, target_tokenizer
from smalti.runs.train_tokenizer import TrainTokenizer, has_density, load_tokenizer
from smalti.tokenizers.dalle import DallE
from smalti.training.targets import Pixels

DEFAULT_BATTERY = Battery()
_QUICK_POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "2x2")
"""What the demo chooses from."""


@dataclass(frozen=True)
class Evaluate:
    """What to measure, and on which images."""

    model: str
    """A run folder."""
    images: str
    """A folder (for probes of a backbone with class folders), or 'embedded'; of fine-tuned networks: with labels."""
    held_out: float | None = setting(None, "share of a folder's images to measure on; none: as in the model's own run")
    validation: float = setting(0.1, "share of the rest that layer and regularisation are chosen on")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    seed: int = setting(0, "of the split and of the draws of few labels")
    test: str = setting("", "DATA with the official test images; empty: test/ beside train/, else held out")
    poolings: tuple[Pooling, ...] = setting(Battery().poolings, "how a layer becomes a vector; also: 2x2")
    k: int = setting(20, "neighbours that vote in k-NN")
    draws: int = setting(10, "draws of few labels")

    def __post_init__(self) -> None:
        require(self.held_out is None or 0 < self.held_out < 1, f"held_out is {self.held_out}", "choose one in (0, 1)")
        require(0 < self.validation < 1, f"validation is {self.validation}", "choose one in (0, 1)")
        for name in ("k", "draws"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}", "use at least 1")
        require(0 <= self.seed < 2**63, f"a seed of {self.seed}", "use 0 to 2^63 - 1")


def main(config: Evaluate) -> dict[str, Any]:
    """Measure and print; nothing is written."""
    log = Log()
    compute = choose_compute(config.device, config.precision)
    kind = read_kind(config.model)
    if kind == Finetune.__name__:
        require(config.held_out is None, "held_out: a fine-tuned network is measured on all images", "leave it out")
        train, test = official_splits(config.images, config.test)
        found = measure_finetuned(config.model, test or train, compute, log)
        print(describe_finetuned(found))
        return found
    if kind != Pretrain.__name__:
        quality = _measure_tokenizer(config, compute, log)
        print(describe_tokenizer(quality))
        return quality
    trained_on = read_config(config.model, Pretrain)
    images = _load(config, trained_on.data, log)
    model = load_model(config.model, compute)
    result = _measure_stages(trained_on, model, images, compute, log)
    if len(images.train.classes) > 1:
        result |= _measure_backbone(config, model.backbone, images, compute, log)
    else:
        log.say(f"no probes: they need labels, and {config.images} has none; put images into one folder a class")
    return result


def _measure_stages(
    trained_on: Pretrain, model: MaskedImageModel, images: InMemoryData, compute: Compute, log: Log
) -> dict[str, Any]:
    """Loss and bound, as at the end of the run; nothing where its tokenizer is gone."""
    if not isinstance(trained_on.target, Pixels) and not is_run(trained_on.tokenizer):
        log.say(f"no loss and no bound: the tokenizer of the run is no longer in {trained_on.tokenizer}")
        return {}
    measured = measure(trained_on, model, images, target_tokenizer(trained_on, compute), compute)
    print("\n".join([describe_loss(measured), *([describe(measured["bound"])] if "bound" in measured else [])]))
    return measured


def _measure_backbone(
    config: Evaluate, backbone: VisionTransformer, images: InMemoryData, compute: Compute, log: Log
) -> dict[str, Any]:
    """What frozen features are worth."""
    log.say(
        f"{len(images.train)} training and {len(images.held_out)} test images of {len(images.train.classes)} classes"
    )
    protocol = Battery(config.poolings, config.validation, config.k, config.draws)
    found = battery(backbone, images.train, images.held_out, compute, config.seed, protocol)
    print(found.describe())
    return found.as_dict()


def battery(
    backbone: Backbone,
    train: InMemoryDataset,
    test: InMemoryDataset,
    compute: Compute,
    seed: int = 0,
    protocol: Battery = DEFAULT_BATTERY,
) -> BatteryResult:
    """What frozen features are worth: k-NN, linear probe and few labels, from one pass over the images."""
    return next(batteries(backbone, train, test, compute, [seed], protocol))


def batteries(
    backbone: Backbone,
    train: InMemoryDataset,
    test: InMemoryDataset,
    compute: Compute,
    seeds: Iterable[int],
    protocol: Battery = DEFAULT_BATTERY,
) -> Iterator[BatteryResult]:
    """The same for several seeds, which draw validation images and few labels; features are computed once."""
    parts = [
        extract(backbone, part, compute, poolings=protocol.poolings, dtype=torch.float16) for part in (train, test)
    ]
    for seed in seeds:
        yield protocol(parts[0], train.labels, parts[1], test.labels, seed)


def open_tokenizer(model: str, compute: Compute) -> tuple[Tokenizer, Data, bool]:
    """A tokenizer that was trained or imported, how it sees images, and whether its p(x|z) is a density."""
    if read_kind(model) == DallE.__name__:
        imported = load_dalle(model, compute)
        return imported, Data(channels=imported.config.in_chans, side=112), has_density(model)
    return load_tokenizer(model, compute), read_config(model, TrainTokenizer).data, has_density(model)


def describe_tokenizer(result: Mapping[str, Any]) -> str:
    """The figures as plain text; what a tokenizer does not have is a dash."""
    lines = [
        f"on {result['window_tokens']} held-out tokens whose patch is not constant"
        f" ({result['constant_share']:.1%} of all patches are)",
        f"{'':<28} {'tokenizer':>10} {'k-means':>10}",
    ]
    for name, key, form in _BOTH:
        lines.append(f"{name:<28} {_cell(result[key], form):>10} {_cell(result.get(f'kmeans_{key}'), form):>10}")
    return "\n".join([*lines, *(f"{name:<28} {_cell(result[key], form):>10}" for name, key, form in _OWN)])


_BOTH = (
    ("codes used", "codebook_usage", "{:.1%}"),
    ("perplexity", "perplexity", "{:.1f}"),
    ("unigram entropy, nats", "codebook_entropy_nats", "{:.3f}"),
    ("most frequent code", "top_share", "{:.1%}"),
)
_OWN = (
    ("PSNR, hard tokens, dB", "psnr_db", "{:.2f}"),
    ("soft minus hard, dB", "hard_soft_gap_db", "{:.2f}"),
    ("SSIM", "ssim", "{:.3f}"),
    ("ELBO, nats an image", "elbo_nats", "{:.1f}"),
    ("bits per dimension", "bits_per_dim", "{:.3f}"),
    ("  under the unigram prior", "bits_per_dim_unigram", "{:.3f}"),
    ("  by grey levels", "grey_level_bits_per_dim", "{:.3f}"),
)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _measure_tokenizer(config: Evaluate, compute: Compute, log: Log) -> dict[str, Any]:
    tokenizer, data, density = open_tokenizer(config.model, compute)
    images = _load(config, data, log)
    train = some_images(images.train, data.side)
    return evaluate_tokenizer(tokenizer, images.held_out.images, compute, train=train, density=density).as_dict()


def probe_backbone(
    backbone: VisionTransformer, images: InMemoryData, compute: Compute, validation: float = 0.1, seed: int = 0
) -> ProbeResult:
    """k-NN and linear probe of every layer; layer and regularisation are chosen on a part of the training images."""
    train, test = (
        extract(backbone, part, compute, poolings=_QUICK_POOLINGS) for part in (images.train, images.held_out)
    )
    split = Split.of(len(images.train), validation, seed)
    return probe(train, images.train.labels, test, images.held_out.labels, split)


def probe_pixels(images: InMemoryData, validation: float = 0.1, seed: int = 0) -> ProbeResult:
    """The same probes on raw pixels."""
    split = Split.of(len(images.train), validation, seed)
    train, test = ({(0, "pixels"): _flat(part)} for part in (images.train, images.held_out))
    return probe(train, images.train.labels, test, images.held_out.labels, split)


def _flat(images: InMemoryDataset) -> Tensor:
    return as_unit_range(images.images).flatten(1)


def _load(config: Evaluate, trained_on: Data, log: Log) -> InMemoryData:
    """The images asked for, in the size and colours that the model was trained on."""
    held_out = trained_on.held_out if config.held_out is None else config.held_out
    data = replace(trained_on, path=config.images, held_out=held_out, limit=None)
    train, test = official_splits(config.images, config.test)
    return load_splits(data, train, test, log) if test else data.load(log)
