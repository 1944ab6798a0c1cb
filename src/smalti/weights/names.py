"""Names of weights: ours, those of timm, of the released code and of transformers; each map serves both directions.

Ours are those of `MaskedImageModel`, `backbone.blocks.0.norm1.weight`, and of a classifier's head. Where other programs
have other tensors, as transformers has one matrix each for queries, keys and values, these are split and joined.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from smalti.core.errors import CheckpointError

_BLOCKS = "blocks."
_LAYER_SCALE = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
"""Ours and those of timm's VisionTransformer; its Beit has ours."""
_OF_PRETRAINING = {"mask_token": "mask_token", "head.": "lm_head."}
"""Ours and those of the released pretraining code."""
_LEFT_OF_TIMM = ("head.", "fc_norm.", "decoder_")
_LEFT_OF_HUGGINGFACE = ("pooler.", "classifier.", "decoder.")
_COMPILED = "_orig_mod."
_DECODER = ("decoder_", "decoder.")
_FIRST_BLOCK = "blocks.0.norm1.weight"
_CLASSIFIER = {"head.": "classifier.", "fc_norm.": "pooler.layernorm."}
"""Those of a classifier of ours and of transformers; timm has ours."""
_QKV = ("query", "key", "value")
_HUGGINGFACE = {
    "mask_token": "embeddings.mask_token",
    "head.": "lm_head.",
    "backbone.cls_token": "embeddings.cls_token",
    "backbone.pos_embed": "embeddings.position_embeddings",
    "backbone.patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "backbone.rel_pos_bias.": "encoder.relative_position_bias.",
    "backbone.norm.": "layernorm.",
}
_HUGGINGFACE_BLOCKS = {
    "attn.relative_position_bias_table": "attention.attention.relative_position_bias.relative_position_bias_table",
    "attn.proj.": "attention.output.dense.",
    "attn.": "attention.attention.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "gamma_": "lambda_",
}
_THEIR_BLOCKS = "encoder.layer."


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """The name with the first beginning in `names` that fits replaced; unchanged where none fits."""
    for begin, other in names.items():
        if name.startswith(begin):
            return other + name.removeprefix(begin)
    return name


def _inverted(names: Mapping[str, str]) -> dict[str, str]:
    """The map in the other direction; longer beginnings first, as one may begin with another."""
    return {theirs: ours for ours, theirs in sorted(names.items(), key=lambda pair: -len(pair[1]))}


def _in_block(name: str, ours: str, theirs: str, names: Mapping[str, str]) -> str:
    """`blocks.3.REST` with the beginning of the list, and REST, renamed."""
    number, dot, rest = name.removeprefix(ours).partition(".")
    return f"{theirs}{number}{dot}{_renamed(rest, names)}"


def is_timm(weights: Mapping[str, object]) -> bool:
    """Whether the names are those of timm or of the released code."""
    return _FIRST_BLOCK in weights


def encoder_of(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """The encoder by the names of timm or transformers, the names of all else, which is left out, and its prefix.

    Training programs put a prefix before these names (`module.`, `model.encoder.`, and lightly `backbone.vit.`), the
    compiler one among them. MAE has a decoder beside the encoder, and a mask token that is the decoder's.

    Raises:
        CheckpointError: there are several encoders.
    """
    named = {name.replace(_COMPILED, ""): name for name in weights}
    prefix = "" if is_timm(named) or is_huggingface(named) else _prefix(named)
    inside = {name.removeprefix(prefix): full for name, full in named.items() if name.startswith(prefix)}
    if any(name.startswith(_DECODER) for name in inside):
        inside = {name: full for name, full in inside.items() if not name.startswith((*_DECODER, "mask_token"))}
    left_out = tuple(name for name in weights if name not in inside.values())
    return {name: weights[full] for name, full in inside.items()}, left_out, prefix


def _prefix(names: Iterable[str]) -> str:
    """What stands before the names of the only encoder; empty where there is none."""
    found = {name.removesuffix(_FIRST_BLOCK) for name in names if name.endswith(f".{_FIRST_BLOCK}")}
    theirs = f".{_THEIR_BLOCKS}0.layernorm_before.weight"
    whole = (name.removesuffix(theirs[1:]) for name in names if name.endswith(theirs))
    found |= {prefix.removesuffix("beit.").removesuffix("vit.") for prefix in whole}  # heads stand beside these
    encoders = sorted(prefix for prefix in found if not re.search("decoder|predictor", prefix))
    if len(encoders) > 1:
        raise CheckpointError(
            f"there are {len(encoders)} encoders, below {' and '.join(encoders[:3])}", fix="save the one that is meant"
        )
    return encoders[0] if encoders else ""


def classifier_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Head and norm of the pooled patches of a classifier, by our names; empty where there is no head.

    Args:
        weights: by the names of timm, of the released code or of transformers.
    """
    theirs = _inverted(_CLASSIFIER) if is_huggingface(weights) else {name: name for name in _CLASSIFIER}
    bare = {_without_prefix(name): value for name, value in weights.items()}
    found = {_renamed(name, theirs): value for name, value in bare.items() if name.startswith(tuple(theirs))}
    return found if "head.weight" in found else {}


def unused(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of timm or transformers that are part of neither masked image model nor classifier."""
    huggingface = is_huggingface(weights)
    left = _LEFT_OF_HUGGINGFACE if huggingface else _LEFT_OF_TIMM
    own = tuple(_CLASSIFIER.values() if huggingface else _CLASSIFIER) if classifier_of(weights) else ()
    bare = ((name, _without_prefix(name)) for name in weights)
    return tuple(name for name, short in bare if short.startswith(left) and not short.startswith(own))


def from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `VisionTransformer` or a `Beit` under the names of `MaskedImageModel`.

    Weights of the released pretraining code have the same names, and also a mask token and a head. A classifier and its
    norm of the pooled patches are left out.
    """
    pretraining, scale = _inverted(_OF_PRETRAINING), _inverted(_LAYER_SCALE)
    result = {}
    for name, value in weights.items():
        if name.startswith(_LEFT_OF_TIMM) or name.endswith("relative_position_index"):
            continue
        if (renamed := _renamed(name, pretraining)) != name or name == "mask_token":
            result[renamed] = value
        elif name.startswith(_BLOCKS):
            result[f"backbone.{_in_block(name, _BLOCKS, _BLOCKS, scale)}"] = value
        else:
            result[f"backbone.{name}"] = value
    return result


def to_timm(weights: Mapping[str, Tensor], *, layer_scale_modules: bool) -> dict[str, Tensor]:
    """Weights of a backbone or classifier of ours under timm's names.

    Args:
        weights: by our names, `backbone.*`, `fc_norm.*` and `head.*`.
        layer_scale_modules: for its VisionTransformer, where LayerScale is a module; its Beit has parameters.
    """
    scale = _LAYER_SCALE if layer_scale_modules else {}
    bare = {name.removeprefix("backbone."): value for name, value in weights.items()}
    return {
        _in_block(name, _BLOCKS, _BLOCKS, scale) if name.startswith(_BLOCKS) else name: value
        for name, value in bare.items()
    }


def to_released(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a masked image model under the names of the released pretraining code."""
    return {_renamed(name, _OF_PRETRAINING).removeprefix("backbone."): value for name, value in weights.items()}


def is_huggingface(weights: Mapping[str, object]) -> bool:
    """Whether the names are those of transformers."""
    return any(_without_prefix(name).startswith(f"{_THEIR_BLOCKS}0.") for name in weights)


def from_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a BEiT or ViT of transformers, as in model.safetensors, under the names of `MaskedImageModel`.

    The source may be a backbone, a masked image model or a classifier; the pooler, with its norm, and the classifier
    are left out.
    """
    names, in_blocks = _inverted(_HUGGINGFACE), _inverted(_HUGGINGFACE_BLOCKS)
    result = {}
    for name, value in weights.items():
        bare = _without_prefix(name)
        if bare.startswith(_LEFT_OF_HUGGINGFACE) or bare.endswith("relative_position_index"):
            continue
        in_block = bare.startswith(_THEIR_BLOCKS)
        renamed = _in_block(bare, _THEIR_BLOCKS, "backbone.blocks.", in_blocks) if in_block else _renamed(bare, names)
        result[renamed] = value
    return _joined(result)


def to_huggingface(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights of a masked image model or backbone of ours under the names of transformers.

    Args:
        weights: by our names.
        prefix: of the backbone: `beit.` or `vit.` within a model with a head, else empty.
    """
    result = {}
    for name, value in _split(weights).items():
        if name.startswith("backbone.blocks."):
            renamed = _in_block(name, "backbone.blocks.", _THEIR_BLOCKS, _HUGGINGFACE_BLOCKS)
        else:
            renamed = _renamed(name, _HUGGINGFACE)
        outside = name.startswith(("head.", "backbone.norm.")) and prefix == "beit." and "head.weight" in weights
        result[renamed if outside else prefix + renamed] = value
    return result


def classifier_to_huggingface(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Head and norm of the pooled patches under the names of transformers; `prefix` is that of its backbone."""
    renamed = {_renamed(name, _CLASSIFIER): value for name, value in weights.items()}
    return {name if name.startswith("classifier.") else prefix + name: value for name, value in renamed.items()}


def _without_prefix(name: str) -> str:
    return name.removeprefix("beit.").removeprefix("vit.")


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


def _split(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of `_joined`."""
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        layer, _, kind = name.rpartition("qkv.")
        if layer:
            parts = zip(_QKV, value.chunk(3), strict=True)
            result |= {f"{layer}{part}.{kind}": chunk.contiguous() for part, chunk in parts}
        elif name.endswith(("attn.q_bias", "attn.v_bias")):
            part = "query" if name.endswith("q_bias") else "value"
            result[f"{name[: -len('q_bias')]}{part}.bias"] = value
        else:
            result[name] = value
    return result
