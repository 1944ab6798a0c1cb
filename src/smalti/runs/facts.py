"""What is known of a MODEL besides its weights, for `smalti info`, bundles and model cards."""

import math
from pathlib import Path
from typing import Any

from smalti.core.compute import Compute
from smalti.core.config import kind_name
from smalti.core.errors import CheckpointError, DataError, SmaltiError
from smalti.core.stored import parse_object, read_object, read_stored
from smalti.data.token_cache import network_digest
from smalti.evaluation.probe import PIXELS
from smalti.exporting.bundle import EVALUATION
from smalti.exporting.card import IMPORTED, Facts
from smalti.exporting.loaded_model import LoadedModel
from smalti.runs.evaluations import last_probes
from smalti.runs.folder import RunFolder, read_config, read_kind
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.provenance import TRAINING_RUNS
from smalti.runs.tokenizers import load_tokenizer
from smalti.training.bundle import read_bundle

_FIGURES = ("linear", "knn", "layer", "pooling", "knn_layer", "knn_pooling")


def facts_of(model: str, loaded: LoadedModel, compute: Compute, evaluation: str = "") -> Facts:
    """The facts of a run folder, bundle or imported tokenizer.

    Args:
        loaded: the network in it, or a part of that.
        evaluation: a file with what `smalti evaluate --json` has printed; empty: the last that `smalti evaluate` has
            kept in the run folder, or that of the bundle or demo, if any.

    Raises:
        DataError: the file has no evaluation of a backbone.
    """
    path = Path(model).expanduser()
    result = RunFolder(path).read_result()
    counts = {name.replace("_", " "): value for name, value in result.items() if name.endswith("_images")}
    if not all(type(value) is int for value in counts.values()):
        raise CheckpointError(f"the result in {path} is damaged", cause="a number of images is no number")
    parameters = sum(value.numel() for value in loaded.network.parameters())
    return Facts(
        name=path.resolve().name,
        parameters=parameters,
        recipe=_recipe(model),
        counts=counts,
        tokenizer=tokenizer_digest(model, compute),
        result=result,
        evaluation=_read_evaluation(Path(evaluation)) if evaluation else _evaluation_beside(path),
    )


def tokenizer_digest(model: str, compute: Compute) -> str:
    """SHA-256 of the tokenizer whose tokens a pretraining run predicts; empty where there is none, or no longer."""
    bundle = read_bundle(Path(model).expanduser())
    if bundle is not None:
        return bundle.tokenizer_sha256
    if read_kind(model) != Pretrain.__name__ or not read_config(model, Pretrain).tokenizer:
        return ""
    try:
        return network_digest(load_tokenizer(read_config(model, Pretrain).tokenizer, compute))
    except SmaltiError:
        return ""


def _recipe(model: str) -> dict[str, str]:
    """The settings that a reader asks for first."""
    bundle = read_bundle(Path(model).expanduser())
    if bundle is not None and bundle.source:
        return {IMPORTED: bundle.source}
    kind = TRAINING_RUNS.get(read_kind(model))
    if kind is None:
        return {}
    config = read_config(model, kind)
    parts = {"steps": f"{config.plan.steps:,}", "batch": f"{config.plan.batch_size:,} images"}
    parts["learning rate"] = f"{config.optimiser.lr:g}, weight decay {config.optimiser.weight_decay:g}"
    parts["seed"] = str(config.seed)
    if config.data.window is not None:
        parts["value window"] = " ".join(f"{bound:g}" for bound in config.data.window)
    for name in ("target", "masking", "decoder", "task", "tokenizer"):
        part = getattr(config, name, None)
        if part is not None and not isinstance(part, str):
            parts[name] = kind_name(type(part))
    return {"trained by": f"smalti {kind_name(kind)}", **parts}


def _evaluation_beside(path: Path) -> dict[str, Any] | None:
    """The last evaluation that is kept in a run folder, or that of a bundle, or of the demo that a run is part of."""
    try:
        if (kept := last_probes(path)) is not None:
            return _beside_untrained(kept["result"])
        if (path / EVALUATION).is_file():
            found = read_object(path / EVALUATION, follow=True)
            names = ("pretrained", "random") if "random" in found else ("pretrained",)
            return {name: _figures(name, found[name]) for name in names}
        if path.resolve().name == "pretrain":
            probe = read_object(path.resolve().parent / "result.json")["probe"]
            return {name: _figures(name, probe[name]) for name in ("pretrained", "random")}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _beside_untrained(result: dict[str, Any]) -> dict[str, Any]:
    """The network and, where baselines were measured, the better of the untrained ones by each figure."""
    beside = {"pretrained": _figures("pretrained", {name: result[name] for name in _FIGURES})}
    rows = [_figures("random", row) for name, row in result.get("baselines", {}).items() if name != PIXELS]
    if rows:
        beside["random"] = {name: max(row[name] for row in rows) for name in _FIGURES[:2]}
    return beside


def _read_evaluation(path: Path) -> dict[str, Any]:
    try:
        found = parse_object(read_stored(path.expanduser(), follow=True).strip().splitlines()[-1])
        return _beside_untrained(found)
    except (OSError, ValueError, KeyError, IndexError) as error:
        fix = "write it with: smalti evaluate MODEL DATA --json > FILE"
        raise DataError(f"no evaluation of a backbone in {path}", cause=str(error), fix=fix) from None


def _figures(of: str, found: dict[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation; ValueError where one is no figure, KeyError where one is missing."""
    for name in _FIGURES[: 4 if of == "pretrained" else 2]:
        value = found[name]
        if name == "pooling":
            fits = isinstance(value, str)
        else:
            fits = type(value) is int or (type(value) is float and math.isfinite(value))
        if not fits:
            raise ValueError(f"{name} is no figure")
    return {name: found[name] for name in _FIGURES if name in found}
