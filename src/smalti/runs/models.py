"""Load the frozen trained network of a run folder; evaluate a fine-tuned one on other labelled images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from smalti.core.addresses import is_address
from smalti.core.compute import Compute
from smalti.core.config import require
from smalti.core.errors import CheckpointError, DataError, UsageError
from smalti.core.log import Log, printable
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.open import EMBEDDED
from smalti.data.duplicates import Overlap, overlap
from smalti.data.load import Data
from smalti.evaluation.inpainting import Inpainter
from smalti.exporting.loaded_model import LoadedModel
from smalti.models.classifier import ImageClassifier
from smalti.models.mim import MaskedImageModel, build_mim, inference_weights
from smalti.models.segmenter import Segmenter
from smalti.models.vit import VisionTransformer, ViT
from smalti.runs.finetune import Finetune
from smalti.runs.folder import read_config, read_kind, run_folder, run_of
from smalti.runs.foreign import bare_backbone
from smalti.runs.model_selection import Measured
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.tokenizers import load_tokenizer, target_tokenizer, tokenizer_data
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.dalle import DallE
from smalti.training.checkpoint import load_frozen, read_checkpoint, require_alike
from smalti.training.targets import Pixels

N = TypeVar("N", bound=nn.Module)


def load_model(run: str, compute: Compute) -> MaskedImageModel:
    """The network of a pretraining run, with mask token and head.

    Raises:
        UsageError: it is a bundle that holds the backbone alone.
    """
    found = load_pretrained(run, compute)
    if isinstance(found, VisionTransformer):
        raise UsageError(f"{run} is a backbone alone", cause="without the head nothing is predicted from it")
    return found


def load_inpainter(run: str, compute: Compute) -> Inpainter:
    """The network of a pretraining run with the tokenizer that it names, to fill in masked images.

    Raises:
        UsageError: it is a bundle that holds the backbone alone, or its tokenizer is not known.
    """
    config, model = read_config(run, Pretrain), load_model(run, compute)
    named = bool(config.tokenizer) or isinstance(config.target, Pixels)
    require(named, f"what {run} predicts cannot be shown: its weights came without their tokenizer")
    tokenizer = target_tokenizer(config.tokenizer, config.target, compute)
    return Inpainter(model, tokenizer, config.target, config.views(tokenizer), compute)


def load_pretrained(run: str, compute: Compute) -> MaskedImageModel | VisionTransformer:
    """The network of a pretraining run; of some bundles only its backbone, which may be without a final norm."""
    config = read_config(run, Pretrain)
    weights = read_checkpoint(Path(run).expanduser()).model
    require_alike(config.decoder, weights, run)
    weights = inference_weights(weights)
    vit, head = config.backbone, weights.get("head.bias")
    if head is not None:
        return _frozen(lambda: build_mim(vit, head.numel(), decoder=config.decoder), vit, weights, run, compute)
    bare = {name.removeprefix("backbone."): value for name, value in weights.items()}
    return _frozen(lambda: bare_backbone(vit, weights), vit, bare, run, compute)


def _frozen(build: Callable[[], N], vit: ViT, weights: dict[str, Tensor], run: str, compute: Compute) -> N:
    """The frozen network with these weights. A configuration of far more weights takes no memory."""
    there = sum(value.numel() for value in weights.values())
    blocks = vit.depth * vit.embed_dim**2 * (4 + 2 * vit.mlp_ratio)
    positions = math.prod(vit.grid) * (vit.embed_dim if vit.positions == "absolute" else vit.num_heads)
    require_alike(vit, weights, run)
    if blocks + positions > there:
        raise CheckpointError(f"the weights of {run} do not fit", cause="its config.json is of a larger network")
    return load_frozen(build(), weights, run, compute.device)


def load_with_preprocessing(model: str, compute: Compute) -> LoadedModel:
    """The network of any MODEL, with the names of its outputs.

    Raises:
        UsageError: the folder is of another verb.
    """
    kind = read_kind(model)
    if kind == Pretrain.__name__:
        return LoadedModel(load_pretrained(model, compute), window=read_config(model, Pretrain).data.window)
    if kind == Finetune.__name__:
        classes, window = run_folder(model).read_classes(), read_config(model, Finetune).data.window
        return LoadedModel(load_finetuned(model, compute), classes, window=window)
    if kind in (TrainTokenizer.__name__, DallE.__name__):
        tokenizer = load_tokenizer(model, compute)
        data = tokenizer_data(model, tokenizer)
        return LoadedModel(tokenizer, side=data.side, window=data.window)
    fix = "give a run of train-tokenizer, pretrain or finetune: those of a demo are inside its folder"
    raise UsageError(f"{model} is {run_of(kind)}", cause="there is no network in it", fix=fix)


def load_finetuned(run: str, compute: Compute) -> ImageClassifier | Segmenter:
    """The network of a fine-tuning run, with its selected weights."""
    config, outputs = read_config(run, Finetune), run_folder(run).read_classes()
    weights = config.read_weights(Path(run).expanduser()).model
    require_alike(config.task, weights, run)
    return _frozen(lambda: config.task.build(config.backbone, outputs), config.backbone, weights, run, compute)


@dataclass(frozen=True)
class FinetunedResult:
    """The scores of a fine-tuned network on so many images, and those of each class."""

    images: int
    measured: Measured

    def as_dict(self) -> dict[str, Any]:
        """The number of images, and scores by name, as those of `test_` in a result."""
        return {"images": self.images} | self.measured.as_dict()

    def describe(self) -> str:
        """The scores in one line, then one line for each class."""
        scores = ", ".join(f"{name} {value:.4f}" for name, value in self.measured.scores.items())
        classes = next(value.items() for value in self.measured.details.values() if isinstance(value, dict))
        lines = (f"  {printable(name):<28} {'-' if score is None else f'{score:.1%}':>7}" for name, score in classes)
        return "\n".join([f"{self.images} images: {scores}", *lines])


def measure_finetuned(run: str, data: Data, compute: Compute, log: Log) -> FinetunedResult:
    """Evaluate the selected network on all images of `data`.

    Raises:
        DataError: the images have no labels, or labels that the run was not trained on.
    """
    config, outputs = read_config(run, Finetune), run_folder(run).read_classes()
    shown = config.task.read(data.path, data, outputs, log)
    log.say(f"all {len(shown)} images of {data.path}; what the run has learned from would flatter it")
    if (found := _learned_too(config.data, data, shown, log)).shared:
        log.say(f"warning: {found}")
    model = load_finetuned(run, compute)
    measured = config.task.measure(model, shown, outputs, config.backbone.img_size, compute)
    return FinetunedResult(len(shown), measured)


def _learned_too(run: Data, data: Data, shown: ImageDataset, log: Log) -> Overlap:
    """How many of the images lie in the data of the run; (0, 0) where that cannot be seen any more."""
    if is_address(run.path) or EMBEDDED in (run.path, data.path):
        return Overlap(0, 0)
    try:
        learned = run.source(run.path)
        judged = shown if shown.pixels is None else data.source(data.path)
    except DataError:
        log.say(f"the images of the run are no longer in {run.path}: whether these are among them is not known")
        return Overlap(0, 0)
    return overlap(learned, judged)
