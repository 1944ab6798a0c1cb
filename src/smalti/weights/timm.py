"""Weights of timm's vision Transformers, renamed to ours, which are nearly the same."""

from collections.abc import Mapping

from torch import Tensor

_LEFT_BEHIND = ("head.", "fc_norm.")
_RENAMED = {".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}
_OF_PRETRAINING = {"mask_token": "mask_token", "lm_head.weight": "head.weight", "lm_head.bias": "head.bias"}


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
        if name.startswith(_LEFT_BEHIND) or name.endswith("relative_position_index"):
            continue
        renamed = name
        for theirs, ours in _RENAMED.items():
            renamed = renamed.replace(theirs, ours)
        result[_OF_PRETRAINING.get(name, f"backbone.{renamed}")] = value
    return result
