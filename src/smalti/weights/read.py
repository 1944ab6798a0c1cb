"""Reading weights of timm and of Hugging Face's transformers from local files, without running code in them.

Their names are turned into ours, which are nearly those of timm.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.core.contracts import Grid
from smalti.core.errors import CheckpointError
from smalti.core.tensors import read_tensors
from smalti.weights.saved_network import read_state_dict
from smalti.weights.source import SourceWeights

_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
_DISTRIBUTED = ".metadata"
_LEFT_OF_TIMM = ("head.", "fc_norm.")
_OF_TIMM = {".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}
_OF_PRETRAINING = {"mask_token": "mask_token", "lm_head.weight": "head.weight", "lm_head.bias": "head.bias"}
_LEFT_OF_HUGGINGFACE = ("pooler.", "classifier.", "decoder.")
_QKV = ("query", "key", "value")
_OF_HUGGINGFACE = {
    "embeddings.mask_token": "mask_token",
    "lm_head.": "head.",
    "embeddings.cls_token": "backbone.cls_token",
    "embeddings.position_embeddings": "backbone.pos_embed",
    "embeddings.patch_embeddings.projection.": "backbone.patch_embed.proj.",
    "encoder.relative_position_bias.": "backbone.rel_pos_bias.",
    "layernorm.": "backbone.norm.",
}
_OF_HUGGINGFACE_BLOCKS = {
    "encoder.layer.": "backbone.blocks.",
    "attention.attention.relative_position_bias.": "attn.",
    "attention.attention.": "attn.",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_": "gamma_",
}


def read_source(place: str) -> SourceWeights:
    """The weights in a file, or in a folder with model.safetensors (and config.json for transformers).

    Raises:
        CheckpointError: there are none, they are damaged, or their names are neither those of timm nor of transformers.
    """
    path = _file(place)
    weights = {name: value.float() for name, value in _read(path).items()}
    if is_timm(weights):
        return SourceWeights(place, from_timm(weights))
    if not is_huggingface(weights):
        named = f", but {min(weights)}" if weights else ""
        cause = f"it has no blocks.0 and no encoder.layer.0{named}"
        fix = "give a ViT or BEiT of timm or transformers, or a pretraining run"
        raise CheckpointError(f"{place} has names of neither timm nor transformers", cause=cause, fix=fix)
    config = _config(path.parent)
    try:
        grid, num_heads = grid_and_heads(config)
        return SourceWeights(place, from_huggingface(weights, config), grid, num_heads)
    except KeyError as error:
        raise CheckpointError(f"{place} has no {error.args[0]}", cause="it is not whole") from None
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error.what}", cause=error.cause, fix=error.fix) from None


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


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise CheckpointError(
            f"no readable {path}", cause="weights of transformers do not describe themselves", fix="put it beside them"
        )
    return config


def is_timm(weights: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of timm."""
    return "blocks.0.norm1.weight" in weights


def from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `VisionTransformer` or a `Beit` under the names of `MaskedImageModel`.

    Weights of the released pretraining code have the same names, and also a mask token and a head. A classifier and its
    norm of the pooled patches are left out.
    """
    result = {}
    for name, value in weights.items():
        if name.startswith(_LEFT_OF_TIMM) or name.endswith("relative_position_index"):
            continue
        renamed = name
        for theirs, ours in _OF_TIMM.items():
            renamed = renamed.replace(theirs, ours)
        result[_OF_PRETRAINING.get(name, f"backbone.{renamed}")] = value
    return result


def is_huggingface(weights: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of transformers."""
    return any(name.removeprefix("beit.").removeprefix("vit.").startswith("encoder.layer.0.") for name in weights)


def from_huggingface(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a BEiT or ViT under the names of `MaskedImageModel`.

    The source may be a backbone, a masked image model or a classifier; the pooler, with its norm, and the classifier
    are left out. The epsilon of norms is 1e-6, as in the released code, and not transformers' default of 1e-12, with
    which BEiT was not trained.

    Args:
        weights: by their names in model.safetensors.
        config: content of config.json.

    Raises:
        CheckpointError: the architecture differs from ours.
    """
    _require_known(weights, config)
    result = {}
    for name, value in weights.items():
        bare = name.removeprefix("beit.").removeprefix("vit.")
        if bare.startswith(_LEFT_OF_HUGGINGFACE) or bare.endswith("relative_position_index"):
            continue
        for theirs, ours in (_OF_HUGGINGFACE_BLOCKS if bare.startswith("encoder.layer.") else _OF_HUGGINGFACE).items():
            bare = bare.replace(theirs, ours)
        result[bare] = value
    return _joined(result)


def grid_and_heads(config: Mapping[str, Any]) -> tuple[Grid, int]:
    """Rows and columns of patches, and the number of attention heads, which weights do not always determine.

    Raises:
        CheckpointError: config.json does not contain them.
    """
    try:
        size, patch = config["image_size"], config["patch_size"]
        height, width = size if isinstance(size, list) else (size, size)
        return (int(height) // int(patch), int(width) // int(patch)), int(config["num_attention_heads"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        cause = "image_size, patch_size and num_attention_heads are needed"
        raise CheckpointError("config.json does not describe the network", cause=cause) from None


def _require_known(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
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


def _joined(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with one matrix for queries, keys and values, and with one bias, or two where keys have none."""
    result = dict(weights)
    for layer in [name.removesuffix("query.weight") for name in weights if name.endswith("attn.query.weight")]:
        result[f"{layer}qkv.weight"] = torch.cat([result.pop(f"{layer}{part}.weight") for part in _QKV])
        if f"{layer}key.bias" in result:
            result[f"{layer}qkv.bias"] = torch.cat([result.pop(f"{layer}{part}.bias") for part in _QKV])
        elif f"{layer}query.bias" in result:
            result[f"{layer}q_bias"] = result.pop(f"{layer}query.bias")
            result[f"{layer}v_bias"] = result.pop(f"{layer}value.bias")
    return result
