"""Weights of BEiT and ViT of Hugging Face's transformers, renamed to ours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from smalti.core.contracts import Grid
from smalti.core.errors import CheckpointError

_LEFT_BEHIND = ("pooler.", "classifier.", "decoder.")
_QKV = ("query", "key", "value")
_ELSEWHERE = {
    "embeddings.mask_token": "mask_token",
    "lm_head.": "head.",
    "embeddings.cls_token": "backbone.cls_token",
    "embeddings.position_embeddings": "backbone.pos_embed",
    "embeddings.patch_embeddings.projection.": "backbone.patch_embed.proj.",
    "encoder.relative_position_bias.": "backbone.rel_pos_bias.",
    "layernorm.": "backbone.norm.",
}
_IN_BLOCKS = {
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
        if bare.startswith(_LEFT_BEHIND) or bare.endswith("relative_position_index"):
            continue
        for theirs, ours in (_IN_BLOCKS if bare.startswith("encoder.layer.") else _ELSEWHERE).items():
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
