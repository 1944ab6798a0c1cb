"""The network in weights of another program (timm, transformers, unilm, lightly), with its own preprocessing."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from smalti.core.errors import CheckpointError, UsageError
from smalti.data.reading import fixed_statistics
from smalti.exporting.loaded_model import LoadedModel, Network
from smalti.models.classifier import Pooling, build_classifier
from smalti.models.mim import build_mim
from smalti.models.vit import VisionTransformer, ViT
from smalti.weights.read import pixel_statistics, read_source
from smalti.weights.source import SourceWeights

Statistics: TypeAlias = Literal["auto", "half", "imagenet"]
"""Pixel mean and deviation that a network was trained with: those in a file beside its weights, 0.5, or ImageNet's."""


def read_foreign(
    place: str,
    num_heads: int | None = None,
    normalisation: Statistics = "auto",
    img_size: tuple[int, int] | None = None,
) -> tuple[LoadedModel, list[str]]:
    """The network in a file or folder of another program, and the names of weights that it does not have.

    Args:
        num_heads: attention heads, where no file says them.
        normalisation: pixel mean and deviation; `auto`: as a file beside the weights says, else 0.5.
        img_size: height and width in pixels, where no file says them; None: square.

    Raises:
        UsageError: the weights do not tell all that is needed, or have another size than `img_size`.
        CheckpointError: the file is damaged, holds no network that is known, or asks for anything to be run.
    """
    source = read_source(place)
    if img_size is not None and source.grid is None:
        source = source.of_size(img_size)
    vit = source.vit(num_heads)
    if img_size not in (None, vit.img_size):
        asked, found = ("x".join(map(str, size or ())) for size in (img_size, vit.img_size))
        what = f"{place} has no positions for images of {asked}"
        raise UsageError(what, cause=f"they are for {found}", fix="set --img-size to the size it was trained with")
    return _loaded(source, _normalised(vit, place, normalisation))


def _normalised(vit: ViT, place: str, kind: Statistics) -> ViT:
    """The backbone with the pixel mean and deviation that it was trained with."""
    if kind == "auto":
        found = pixel_statistics(place)
        if found is not None:
            return replace(vit, mean=found[0], std=found[1])
        kind = "half"
    mean, std = fixed_statistics(kind, vit.in_chans)
    return replace(vit, mean=mean, std=std)


def _loaded(source: SourceWeights, vit: ViT) -> tuple[LoadedModel, list[str]]:
    """The network with the weights, and the names of those that it does not have."""
    weights = source.as_configured(vit)
    with torch.device("meta"):  # which takes no memory: shapes are compared first
        planned, _ = _built(source, weights, vit)
    prefix = "backbone." if isinstance(planned, VisionTransformer) else ""
    given = weights | dict(source.classifier)
    own = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    wanted = planned.state_dict()
    for name, value in wanted.items():
        if name not in own:
            raise CheckpointError(f"{source.where} has no {name}", cause="it is not whole")
        if own[name].shape != value.shape:
            shapes = f"{tuple(own[name].shape)}, and {tuple(value.shape)} is expected"
            raise CheckpointError(f"{name} of {source.where} has the shape {shapes}")
    network, classes = _built(source, weights, vit)
    network.load_state_dict({name: own[name] for name in wanted})
    unknown = [name for name in weights if name.removeprefix(prefix) not in wanted]
    return LoadedModel(network.eval().requires_grad_(False), classes), [*source.left_out, *unknown]


def _built(source: SourceWeights, weights: Mapping[str, Tensor], vit: ViT) -> tuple[Network, tuple[str, ...]]:
    """The network that the weights belong to, and the names of its classes: their numbers."""
    if "head.weight" in source.classifier:
        num_classes = len(source.classifier["head.weight"])
        pooling: Pooling = "mean" if "fc_norm.weight" in source.classifier else "cls"
        return build_classifier(vit, num_classes, pooling), tuple(map(str, range(num_classes)))
    if {"head.weight", "mask_token"} <= weights.keys():
        return build_mim(vit, len(weights["head.weight"])), ()
    return bare_backbone(vit, weights), ()


def bare_backbone(vit: ViT, weights: Mapping[str, Tensor]) -> VisionTransformer:
    """A backbone with random weights, without a final norm where these weights have none."""
    backbone = vit.build()
    if "backbone.norm.weight" not in weights:
        backbone.norm = nn.Identity()
    return backbone
