"""`smalti export`: a model in the format of another program, or as a bundle; kept if it computes the same."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from smalti.core.compute import Compute, choose_compute
from smalti.core.config import as_kind, require, setting, to_json
from smalti.core.files import new_folder, require_new, write_bytes
from smalti.data.load import Data
from smalti.exporting import bundle, huggingface, onnx, timm, torch_export, unilm
from smalti.exporting.card import Facts, card
from smalti.exporting.certificate import Pairs, certify, describe, require_packages, sample_images
from smalti.exporting.graphs import outputs_of_both
from smalti.exporting.loaded_model import LoadedModel
from smalti.models.mim import MaskedImageModel
from smalti.models.patch_aggregation import PatchAggregation
from smalti.models.vit import VisionTransformer
from smalti.runs.facts import facts_of
from smalti.runs.finetune import Finetune
from smalti.runs.folder import read_config, read_kind
from smalti.runs.models import load_with_preprocessing
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.dalle import DallE
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.tokenizers.teacher_features import TeacherBased
from smalti.training.checkpoint import read_checkpoint


@dataclass(frozen=True)
class Export:
    """Which model, or which part of it, and for what."""

    model: str
    """A run folder, a bundle, or an imported tokenizer."""
    to: Literal["bundle", "timm", "huggingface", "unilm", "onnx", "torch-export"] = setting("bundle", "the format")
    out: str = setting("", "the folder to write")
    part: Literal["auto", "backbone", "whole"] = setting(
        "auto", "the backbone alone, or with its head; auto: of pretraining the backbone, but in bundle and unilm"
    )
    layer: int | None = setting(None, "the last block to keep, without the final norm; none: the whole backbone")
    evaluation: str = setting("", "a file with what smalti evaluate MODEL DATA --json has printed, for the model card")

    def __post_init__(self) -> None:
        require(bool(self.out), "no folder to write", "use --out FOLDER")
        require(self.layer is None or self.part != "whole", "a layer, and the whole model", "leave one of them out")


class _Target(NamedTuple):
    """A format.

    Attributes:
        packages: that re-load it.
        write: write it into a folder; returns the lines that load it from FOLDER.
        compare: the outputs of the network and of what was written, for images in [0, 1].
    """

    packages: tuple[str, ...]
    write: Callable[[LoadedModel, Path], str]
    compare: Callable[[LoadedModel, Path, Tensor], Pairs]


_TARGETS = {
    "timm": _Target(timm.PACKAGES, timm.write, timm.compare),
    "onnx": _Target(onnx.PACKAGES, onnx.write, onnx.compare),
    "torch-export": _Target(torch_export.PACKAGES, torch_export.write, torch_export.compare),
    "unilm": _Target(unilm.PACKAGES, unilm.write, unilm.compare),
    "huggingface": _Target(huggingface.PACKAGES, huggingface.write, huggingface.compare),
}


_OF_BACKBONES = ("timm", "unilm", "huggingface")
"""Formats that have no tokenizers."""


def main(config: Export) -> dict[str, Any]:
    """Write, re-load, compare, and only then give the folder its name.

    Raises:
        UsageError: the folder is not empty, the format has no such network, or its library is not installed.
        RefusedError: the exported model computes something else; nothing is left.
    """
    out = Path(config.out).expanduser()
    require_new(out, "an export")
    compute = choose_compute("cpu", "fp32")
    loaded = _part(config, load_with_preprocessing(config.model, compute))
    facts = facts_of(config.model, loaded, compute, config.evaluation)
    target = _bundled(config.model, facts, compute) if config.to == "bundle" else _TARGETS[config.to]
    require_packages(target.packages, config.to)
    with new_folder(out) as folder:
        snippet = target.write(loaded, folder)
        bundle.write_classes(loaded, folder)
        pairs = target.compare(loaded, folder, sample_images(loaded.preprocessing))
        certificate = certify(folder, config.to, pairs, target.packages)
        write_bytes(folder / "README.md", card(loaded, facts, config.to, snippet, certificate))
    print(snippet.replace("FOLDER", str(out)).strip())
    print(f"written: {out}, a {loaded.kind}; {describe(certificate)}")
    return {"out": str(out), "kind": loaded.kind, "parameters": facts.parameters, "certificate": certificate}


def _part(config: Export, whole: LoadedModel) -> LoadedModel:
    """The part of the model that is exported."""
    if config.layer is not None:
        return whole.truncated(config.layer)
    if isinstance(whole.network, ImageTokenizer) and config.to in _OF_BACKBONES:
        return whole.backbone_only()  # refuses, before a library is asked for
    pretrained = isinstance(whole.network, MaskedImageModel) and config.to not in ("bundle", "unilm")
    alone = config.part == "backbone" or (config.part == "auto" and pretrained)
    return whole.backbone_only() if alone else whole


def _bundled(model: str, facts: Facts, compute: Compute) -> _Target:
    """The format of a bundle, which also has files of the run."""

    def write(loaded: LoadedModel, folder: Path) -> str:
        return bundle.write(loaded, facts, to_json(_config(model, loaded)), _step(model), folder)

    def compare(loaded: LoadedModel, folder: Path, images: Tensor) -> Pairs:
        return outputs_of_both(loaded.network, load_with_preprocessing(str(folder), compute).network, images)

    return _Target((), write, compare)


def _step(model: str) -> int:
    """Optimiser steps that the weights were trained."""
    path, kind = Path(model).expanduser(), read_kind(model)
    if kind == Finetune.__name__:
        return read_config(model, Finetune).read_weights(path).step
    return 0 if kind == DallE.__name__ else read_checkpoint(path).step


def _config(model: str, loaded: LoadedModel) -> Pretrain | Finetune | TrainTokenizer:
    """The configuration of a bundle: that of the run, without the places of its files."""
    kind = read_kind(model)
    if kind == DallE.__name__:
        dalle = loaded.network.config
        assert isinstance(dalle, DallE)
        return TrainTokenizer(tokenizer=dalle, data=Data(channels=dalle.in_chans, side=loaded.side))
    if kind == TrainTokenizer.__name__:
        config = read_config(model, TrainTokenizer)
        part = config.tokenizer
        part = replace(part, teacher="") if isinstance(part, TeacherBased) else part
        return replace(config, out="", data=replace(config.data, path=""), tokenizer=part)
    run = read_config(model, Finetune if kind == Finetune.__name__ else Pretrain)
    run = replace(run, out="", data=replace(run.data, path=""))
    if isinstance(run, Finetune) and not isinstance(loaded.network, VisionTransformer):
        return replace(run, init="", test="", validation_data="", choose="last")
    whole = replace(as_kind(run, Pretrain), patch_aggregation=PatchAggregation())  # whose weights fall away
    alone = replace(whole, backbone=loaded.backbone.config)
    return replace(alone, init_from="", freeze_backbone_steps=0, token_cache="")
