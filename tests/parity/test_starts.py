"""Models that timm and transformers wrote compute in our networks what they computed there: `make parity`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from smalti.models import vit
from smalti.models.mim import MaskedImageModel, build_mim
from smalti.models.vit import ViT
from smalti.training.init_weights import init_from_weights
from smalti.weights.read import read_source

PAPER = ViT(img_size=(16, 16), patch_size=4, embed_dim=32, depth=2, num_heads=4)
RELEASED = vit.released(PAPER)
BLOCKS = ViT(**vars(RELEASED) | {"positions": "block_relative"})
VOCABULARY = 19
IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def shaken(model: nn.Module) -> nn.Module:
    """Every parameter counts."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    return model.eval()


def started(config: ViT, place: Path) -> MaskedImageModel:
    model = build_mim(config, VOCABULARY, seed=3).eval()
    init_from_weights(model, read_source(str(place)))
    return model


@torch.no_grad()
def features(model: MaskedImageModel, normed: bool) -> Tensor:
    """Of all positions, after the last norm or before it."""
    found = model.backbone.encode(model.backbone.embed(IMAGES), layers=True)
    return torch.cat([found.cls[:, None], found.patches], dim=1) if normed else found.layers[-1]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kind", ["vit", "vit with LayerScale", "beit", "beit, pooled"])
def test_a_model_of_timm(kind: str, suffix: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}
    if kind.startswith("vit"):
        scale = 0.1 if "LayerScale" in kind else None
        made = timm.models.vision_transformer.VisionTransformer(**sizes, num_classes=5, init_values=scale)
        config = ViT(**vars(PAPER) | {"init_values": scale})
    else:
        options = {"init_values": 0.1, "use_abs_pos_emb": False, "use_rel_pos_bias": True, "num_classes": 5}
        pool = "avg" if "pooled" in kind else "token"
        made, config = timm.models.beit.Beit(**sizes, **options, global_pool=pool), BLOCKS
    shaken(made)
    path = tmp_path / f"model{suffix}"
    save_file(made.state_dict(), path) if suffix == ".safetensors" else torch.save(made.state_dict(), path)
    with torch.no_grad():
        expected = made.forward_features(IMAGES * 2 - 1)
    found = features(started(config, path), normed="pooled" not in kind)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


SETTINGS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 16,
    "patch_size": 4,
    "layer_norm_eps": 1e-6,  # its default is 1e-12
}


def check_transformers(made: nn.Module, bare: nn.Module, config: ViT, normed: bool, folder: Path) -> MaskedImageModel:
    shaken(made)
    made.save_pretrained(folder)  # type: ignore[operator]
    assert (folder / "model.safetensors").exists()
    assert "model_type" in json.loads((folder / "config.json").read_text())
    with torch.no_grad():
        expected = bare(IMAGES * 2 - 1).last_hidden_state
    model = started(config, folder)
    torch.testing.assert_close(features(model, normed), expected, rtol=0, atol=1e-5)
    return model


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification"])
def test_a_vit_of_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, kind)(transformers.ViTConfig(**SETTINGS))
    check_transformers(made, getattr(made, "vit", made), PAPER, True, tmp_path)


@pytest.mark.parametrize("kind", ["BeitModel", "BeitForImageClassification"])
def test_a_beit_of_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, kind)(transformers.BeitConfig(**SETTINGS, use_relative_position_bias=True))
    check_transformers(made, getattr(made, "beit", made), BLOCKS, False, tmp_path)


@pytest.mark.parametrize("config", [RELEASED, BLOCKS])
def test_a_masked_image_model_of_transformers(config: ViT, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"vocab_size": VOCABULARY, "use_mask_token": True, "use_shared_relative_position_bias": True}
    made = transformers.BeitForMaskedImageModeling(transformers.BeitConfig(**SETTINGS, **settings))
    model = check_transformers(made, made.beit, config, False, tmp_path)
    mask, index = torch.arange(16).expand(3, -1) < 6, torch.arange(6).expand(3, -1)
    with torch.no_grad():
        expected = made(IMAGES * 2 - 1, bool_masked_pos=mask).logits
        torch.testing.assert_close(model(IMAGES, mask, index).flatten(0, 1), expected[mask], rtol=0, atol=1e-5)
