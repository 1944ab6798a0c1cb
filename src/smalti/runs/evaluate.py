"""`smalti evaluate`: what a tokenizer or a backbone is worth on labelled or unlabelled images."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from smalti.core.compute import Compute, Device, Precision, choose_compute
from smalti.core.config import setting
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.load import Data, Images
from smalti.data.sources.resident import Resident
from smalti.evaluation.features import extract
from smalti.evaluation.probe import ProbeResult, Split, probe
from smalti.evaluation.reconstruction import evaluate_tokenizer
from smalti.models.vit import VisionTransformer, as_unit_range
from smalti.runs.folder import read_config, read_kind
from smalti.runs.pretrain import Pretrain, load_model
from smalti.runs.train_tokenizer import TrainTokenizer, load_tokenizer


@dataclass(frozen=True)
class Evaluate:
    """What to measure, and on which images."""

    model: str
    """A run folder."""
    images: str
    """A folder (for a backbone with class folders), or 'embedded'."""
    held_out: float | None = setting(None, "share of a folder's images to measure on; none: as in the model's own run")
    validation: float = setting(0.1, "share of the rest that layer and regularisation are chosen on")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    seed: int = setting(0, "of the split")


def main(config: Evaluate) -> dict[str, Any]:
    """Measure; nothing is written."""
    log = Log()
    compute = choose_compute(config.device, config.precision)
    if read_kind(config.model) == TrainTokenizer.__name__:
        images = _load(config, read_config(config.model, TrainTokenizer).data, log)
        return evaluate_tokenizer(load_tokenizer(config.model, compute), images.held_out.images, compute).as_dict()
    images = _load(config, read_config(config.model, Pretrain).data, log)
    if len(images.train.classes) < 2:
        raise DataError(
            f"no labels in {config.images}", cause="probes need class folders", fix="put images into one folder a class"
        )
    log.say(
        f"{len(images.train)} training and {len(images.held_out)} test images of {len(images.train.classes)} classes"
    )
    backbone = load_model(config.model, compute).backbone
    return asdict(probe_backbone(backbone, images, compute, config.validation, config.seed))


def probe_backbone(
    backbone: VisionTransformer, images: Images, compute: Compute, validation: float = 0.1, seed: int = 0
) -> ProbeResult:
    """k-NN and linear probe of every layer; layer and regularisation are chosen on a part of the training images."""
    train, test = extract(backbone, images.train, compute), extract(backbone, images.held_out, compute)
    split = Split.of(len(images.train), validation, seed)
    return probe(train, images.train.labels, test, images.held_out.labels, split)


def probe_pixels(images: Images, validation: float = 0.1, seed: int = 0) -> ProbeResult:
    """The same probes on raw pixels."""
    split = Split.of(len(images.train), validation, seed)
    train, test = ({(0, "pixels"): _flat(part)} for part in images)
    return probe(train, images.train.labels, test, images.held_out.labels, split)


def _flat(images: Resident) -> Tensor:
    return as_unit_range(images.images).flatten(1)


def _load(config: Evaluate, trained_on: Data, log: Log) -> Images:
    """The images asked for, in the size and colours that the model was trained on."""
    held_out = trained_on.held_out if config.held_out is None else config.held_out
    return replace(trained_on, path=config.images, held_out=held_out, limit=None).load(log)
