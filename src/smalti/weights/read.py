"""Reading weights of timm and of Hugging Face's transformers from local files, without running code in them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from smalti.core.contracts import Grid
from smalti.core.errors import CheckpointError
from smalti.core.log import Log, printable
from smalti.core.stored import read_object, read_object_if_any
from smalti.core.tensors import read_tensors
from smalti.weights import names
from smalti.weights.saved_network import read_state_dict
from smalti.weights.source import SourceWeights

_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
_CONFIG = "config.json"
_DISTRIBUTED = ".metadata"
_STATISTICS = (
    ("preprocessor_config.json", "", "image_mean", "image_std"),
    ("config.json", "pretrained_cfg", "mean", "std"),
)
"""File, entry and names of transformers, and of timm."""


def read_source(place: str) -> SourceWeights:
    """The weights in a file, or in a folder with model.safetensors (and config.json for transformers).

    Raises:
        CheckpointError: there are none, they are damaged, or their names are neither those of timm nor of transformers.
    """
    found = read_weights(place)
    try:
        weights, others, prefix = names.encoder_of(found)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error.what}", cause=error.cause, fix=error.fix) from None
    if prefix:
        Log().say(f"{place}: names are read without their prefix {printable(prefix)}")
    classifier, left_out = names.classifier_of(weights), (*others, *names.unused(weights))
    if names.is_timm(weights):
        source = SourceWeights(place, names.from_timm(weights), classifier=classifier, left_out=left_out)
        size = _size_of_timm(place)
        return source if size is None else source.of_size(size)
    if not names.is_huggingface(weights):
        named = f", but {min(weights)}" if weights else ""
        cause = f"it has no blocks.0 and no encoder.layer.0{named}"
        fix = "give a ViT or BEiT of timm or transformers, or a pretraining run"
        raise CheckpointError(f"{place} has names of neither timm nor transformers", cause=cause, fix=fix)
    config = _config(place)
    try:
        grid, num_heads = grid_and_heads(config)
        return SourceWeights(place, from_huggingface(weights, config), grid, num_heads, classifier, left_out)
    except KeyError as error:
        raise CheckpointError(f"{place} has no {error.args[0]}", cause="it is not whole") from None
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error.what}", cause=error.cause, fix=error.fix) from None


def read_weights(place: str) -> dict[str, Tensor]:
    """The weights in a file or folder by their names there, in float32.

    Raises:
        CheckpointError: there are none, they are damaged, or one is empty or has values that are not finite.
    """
    result = {}
    for name, value in _read(_file(place)).items():
        if value.is_complex():
            raise CheckpointError(f"{place} has complex numbers in {name[:200]}", cause="no network we know has them")
        result[name] = value.float()
        if value.numel() == 0 or not result[name].isfinite().all():
            cause = "it is empty" if value.numel() == 0 else "it has values that are not finite"
            raise CheckpointError(f"{place} has a damaged {name[:200]}", cause=cause, fix="get the file again")
    return result


def is_foreign(place: str) -> bool:
    """Whether a place is a file, or a folder with weights in it, and so none of ours unless a config.json says that."""
    path = Path(place).expanduser()
    return path.is_file() or any((path / name).is_file() for name in _IN_FOLDERS)


def describing(place: str) -> dict[str, Any] | None:
    """The config.json beside the weights; None where there is none, or none that can be read."""
    return read_object_if_any(_file(place).parent / _CONFIG, follow=True)


def pixel_statistics(place: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Pixel mean and standard deviation in a file of transformers or timm beside the weights; None: there is none."""
    folder = _file(place).parent
    for name, part, mean, std in _STATISTICS:
        try:
            found = read_object(folder / name, follow=True)
            found = found[part] if part else found
            means, deviations = (tuple(map(float, found[key])) for key in (mean, std))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if all(map(math.isfinite, (*means, *deviations))) and all(value > 0 for value in deviations):
            return means, deviations
    return None


def _size_of_timm(place: str) -> tuple[int, int] | None:
    """Height and width of the images, in timm's config.json beside the weights; None: it is not there."""
    try:
        _, height, width = (describing(place) or {})["pretrained_cfg"]["input_size"]
    except (KeyError, TypeError, ValueError):
        return None
    return (height, width) if type(height) is int and type(width) is int and min(height, width) > 0 else None


def _file(place: str) -> Path:
    path = Path(place).expanduser()
    if path.is_dir():
        found = [path / name for name in _IN_FOLDERS if (path / name).is_file()]
        if not found:
            distributed = (path / _DISTRIBUTED).exists()
            cause = "it is a distributed checkpoint of torch, which only a pickle describes" if distributed else ""
            cause = cause or f"neither {' nor '.join(_IN_FOLDERS)} is there"
            raise CheckpointError(f"no weights in {place}", cause=cause, fix="save the model there in one file")
        return found[0]
    if not path.exists():
        raise CheckpointError(
            f"there is no {place}", cause="nothing is fetched from a hub", fix="give a folder or a file that is here"
        )
    return path


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        try:
            return read_state_dict(path)
        except CheckpointError as error:
            fix = "save its state dict with safetensors.torch.save_file, where you trust it"
            raise CheckpointError(error.what, cause=error.cause, fix=f"nothing was run; {fix}") from None
    try:
        return read_tensors(path)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read", cause=str(error), fix="get the file again") from None


def _config(place: str) -> dict[str, Any]:
    config = describing(place)
    if config is None:
        raise CheckpointError(
            f"no readable {_file(place).parent / _CONFIG}",
            cause="weights of transformers do not describe themselves",
            fix="put it beside them",
        )
    return config


def from_huggingface(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a BEiT or ViT under the names of `MaskedImageModel`; see `names.from_huggingface`.

    The epsilon of norms is 1e-6, as in the released code, and not transformers' default of 1e-12, with which BEiT was
    not trained.

    Args:
        weights: by their names in model.safetensors.

    Raises:
        CheckpointError: the architecture differs from ours.
    """
    kind, activation = config.get("model_type"), config.get("hidden_act", "gelu")
    if kind not in ("beit", "vit"):
        raise CheckpointError(f"config.json is of a model_type '{kind}'", cause="beit and vit are known")
    if activation != "gelu":
        raise CheckpointError(f"config.json has the hidden_act '{activation}'", cause="our backbone has gelu")
    if {"beit.layernorm.weight", "layernorm.weight"} <= weights.keys():
        cause = "our backbone has one; it was made with use_mean_pooling false"
        raise CheckpointError("the weights have two last norms", cause=cause)
    rows, columns = grid_and_heads(config)[0]
    if rows != columns and any(name.endswith("relative_position_bias_table") for name in weights):
        cause = "transformers has rows and columns of its tables in another order where they differ"
        raise CheckpointError(f"relative positions on a grid of {rows}x{columns} patches", cause=cause)
    return names.from_huggingface(weights)


def grid_and_heads(config: Mapping[str, Any]) -> tuple[Grid, int]:
    """Rows and columns of patches, and the number of attention heads, which weights do not always determine.

    Raises:
        CheckpointError: config.json does not contain them.
    """
    try:
        size, patch, num_heads = (config[name] for name in ("image_size", "patch_size", "num_attention_heads"))
        height, width = size if isinstance(size, list) else (size, size)
        if not all(type(number) is int and number > 0 for number in (height, width, patch, num_heads)):
            raise ValueError
        return (height // patch, width // patch), num_heads
    except (KeyError, TypeError, ValueError):
        cause = "image_size, patch_size and num_attention_heads are needed"
        raise CheckpointError("config.json does not describe the network", cause=cause) from None
