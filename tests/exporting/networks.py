"""Networks to export, of every variant, whose weights all count."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from smalti.core.compute import choose_compute
from smalti.exporting.certificate import Pairs, certify, sample_images
from smalti.exporting.loaded_model import LoadedModel
from smalti.models.classifier import Pooling, build_classifier
from smalti.models.decoder import CrossAttention, Linear
from smalti.models.mim import build_mim
from smalti.models.segmenter import Linear as LinearHead
from smalti.models.segmenter import MultiLevel, build_segmenter
from smalti.models.vit import ViT

CPU = choose_compute("cpu", "fp32")
PAPER = ViT(img_size=(16, 16), patch_size=4, embed_dim=32, depth=3, num_heads=4, mean=(0.4, 0.5, 0.6), std=(0.2,))
BLOCKS = ViT(**vars(PAPER) | {"positions": "block_relative", "init_values": 0.3})
RELEASED = ViT(**vars(PAPER) | {"positions": "shared_relative", "init_values": 0.1, "k_bias": False})
SHARED = ViT(**vars(PAPER) | {"positions": "shared_relative"})
SCALED = ViT(**vars(PAPER) | {"init_values": 0.2, "k_bias": False})
GREY = ViT(img_size=(28, 28), patch_size=4, in_chans=1, embed_dim=64, depth=2, num_heads=2)
BASE = ViT(img_size=(224, 224), depth=1)
WIDE = ViT(**vars(PAPER) | {"img_size": (16, 24)})
VARIANTS = {
    "paper": PAPER,
    "blocks": BLOCKS,
    "released": RELEASED,
    "shared": SHARED,
    "scaled": SCALED,
    "grey": GREY,
    "base": BASE,
}
CLASSES = ("cat", "dog", "newt")
LINEAR, PYRAMID = Linear(), MultiLevel(width=8)


def shaken(model: nn.Module) -> Any:
    """The model with every parameter moved, ready for use."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=1.0 if "table" in name else 0.1)
    return model.eval().requires_grad_(False)


def backbone(config: ViT) -> LoadedModel:
    return LoadedModel(shaken(config.build()))


def masked(config: ViT, decoder: Linear | CrossAttention = LINEAR) -> LoadedModel:
    return LoadedModel(shaken(build_mim(config, 19, decoder=decoder)))


def classifier(config: ViT, pooling: Pooling = "mean") -> LoadedModel:
    return LoadedModel(shaken(build_classifier(config, len(CLASSES), pooling)), CLASSES)


def segmenter(config: ViT, head: LinearHead | MultiLevel = PYRAMID) -> LoadedModel:
    return LoadedModel(shaken(build_segmenter(config, len(CLASSES), head)), CLASSES)


def exported(loaded: LoadedModel, target: Any, folder: Path) -> tuple[str, Pairs]:
    """Write a network with a module of `smalti.exporting`, and compare: the lines that load it, and all outputs."""
    snippet = target.write(loaded, folder)
    pairs = target.compare(loaded, folder, sample_images(loaded.preprocessing))
    certify(folder, "here", pairs, target.PACKAGES)
    return snippet.replace("FOLDER", str(folder)), pairs


def run(snippet: str, **given: Any) -> dict[str, Any]:
    """What the lines of a model card define."""
    exec(snippet, given)
    return given
