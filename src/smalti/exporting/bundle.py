"""The files of a bundle: weights and configuration (training/bundle.py), preprocessing, classes, results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.core.files import write_json
from smalti.exporting.card import IMPORTED, Facts
from smalti.exporting.loaded_model import LoadedModel
from smalti.training.bundle import write_bundle

PREPROCESSOR, EVALUATION = "preprocessor.json", "evaluation.json"
_CLASSES, _RESULT = "classes.json", "result.json"


def write(loaded: LoadedModel, facts: Facts, config: Any, step: int, folder: Path) -> str:
    """Write the bundle. Returns the commands that use it.

    Args:
        config: the configuration of the run as JSON values, which fits the weights.
        step: optimiser steps that the weights were trained.
    """
    source = facts.recipe.get(IMPORTED, "")
    write_bundle(folder, config, step, facts.tokenizer, loaded.weights(), source)
    write_json(folder / PREPROCESSOR, preprocessor(loaded, facts.evaluation))
    write_classes(loaded, folder)
    if facts.result:
        write_json(folder / _RESULT, facts.result)
    if facts.evaluation is not None:
        write_json(folder / EVALUATION, facts.evaluation)
    return "\n".join([_USES[loaded.kind], *(_ELSEWHERE[target] for target in _TARGETS[loaded.kind])])


def write_classes(loaded: LoadedModel, folder: Path) -> None:
    """Write the names of the outputs of a classifier or segmenter, in order; of others nothing."""
    if loaded.classes:
        write_json(folder / _CLASSES, list(loaded.classes))


def preprocessor(loaded: LoadedModel, evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """How images are prepared, and the layer and pooling that were best by the linear probe, where that is known."""
    shown = loaded.preprocessing
    about: dict[str, Any] = {
        "height": shown.size[0],
        "width": shown.size[1],
        "channels": shown.channels,
        "crop": "centre square",
        "interpolation": shown.interpolation,
        "rescale": 1 / 255,
        "mean": shown.mean,
        "std": shown.std,
    }
    if shown.window is not None:
        about["window"] = shown.window
    best = {} if evaluation is None else {key: evaluation["pretrained"][key] for key in ("layer", "pooling")}
    return about | {f"best_{key}": value for key, value in best.items()}


_ELSEWHERE = {
    "timm": "smalti export FOLDER --to timm --out NEW         # for timm.create_model",
    "huggingface": "smalti export FOLDER --to huggingface --out NEW  # for AutoModel.from_pretrained of transformers",
    "onnx": "smalti export FOLDER --to onnx --out NEW         # for onnxruntime, without torch",
}
_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("backbone", "masked image model", "classifier"), ("timm", "huggingface", "onnx")),
    **dict.fromkeys(("segmenter", "tokenizer"), ("onnx",)),
}
_USES = {
    "backbone": "smalti evaluate FOLDER labelled-images\nsmalti finetune RECIPE --data IMAGES --init FOLDER --out RUN",
    "masked image model": "smalti evaluate FOLDER images\nsmalti show FOLDER image.jpg\n"
    "smalti finetune RECIPE --data IMAGES --init FOLDER --out RUN",
    "classifier": "smalti evaluate FOLDER labelled-images",
    "segmenter": "smalti evaluate FOLDER images-with-masks",
    "tokenizer": "smalti show FOLDER image.jpg\nsmalti pretrain RECIPE --data IMAGES --tokenizer FOLDER --out RUN",
}
