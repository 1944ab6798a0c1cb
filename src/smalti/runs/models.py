"""The trained network in a run folder, frozen."""

from pathlib import Path

from smalti.core.compute import Compute
from smalti.models.classifier import ImageClassifier
from smalti.models.mim import MaskedImageModel, build_mim
from smalti.models.segmenter import Segmenter
from smalti.runs.finetune import Finetune
from smalti.runs.folder import RunFolder, read_config
from smalti.runs.pretrain import Pretrain
from smalti.training.checkpoint import load_frozen, read_checkpoint


def load_model(run: str, compute: Compute) -> MaskedImageModel:
    """That of a pretraining run, with mask token and head."""
    config = read_config(run, Pretrain)
    weights = read_checkpoint(Path(run).expanduser()).model
    return load_frozen(
        build_mim(config.backbone, len(weights["head.bias"]), decoder=config.decoder), weights, run, compute.device
    )


def load_finetuned(run: str, compute: Compute) -> ImageClassifier | Segmenter:
    """That of a fine-tuning run, with the weights that it has chosen."""
    config, folder = read_config(run, Finetune), RunFolder(Path(run).expanduser())
    model = config.task.build(config.backbone, folder.read_classes())
    return load_frozen(model, config.read_weights(folder.path).model, run, compute.device)
