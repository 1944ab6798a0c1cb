"""`smalti import` of what timm and transformers write themselves: what comes in computes what it computed there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.core.compute import choose_compute
from smalti.models.classifier import ImageClassifier
from smalti.models.vit import VisionTransformer
from smalti.runs.import_model import ImportModel
from smalti.runs.import_model import main as import_model
from smalti.runs.models import load_with_preprocessing

SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
NORMALISED = (IMAGES - 0.5) / 0.5


def shaken(model: Any) -> Any:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    return model.eval()


def tokens_of(backbone: VisionTransformer, normed: bool = True) -> Tensor:
    found = backbone.encode(backbone.embed(IMAGES), layers=True)
    return torch.cat([found.cls[:, None], found.patches], dim=1) if normed else found.layers[-1]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["vit_base_patch16_224", "beit_base_patch16_224", "mae"])
@torch.no_grad()
def test_backbones_and_classifiers_of_timm(name: str, suffix: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    classes = 0 if name == "mae" else 5
    made = shaken(timm.create_model("vit_base_patch16_224" if name == "mae" else name, num_classes=classes, **SIZES))
    weights = {key: value.contiguous() for key, value in made.state_dict().items()}
    if name == "mae":  # its decoder lies beside the encoder
        weights |= {"mask_token": torch.zeros(1, 1, 16), "decoder_embed.weight": torch.zeros(16, 64)}
    path = tmp_path / f"model{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save({"model": weights}, path)
    about = import_model(ImportModel((str(path),), str(tmp_path / "imported"), num_heads=4))
    network = load_with_preprocessing(str(tmp_path / "imported"), choose_compute("cpu", "fp32")).network
    assert [key for key in about["left_out"] if "decoder" not in key] == (["mask_token"] if name == "mae" else [])
    if classes:
        assert isinstance(network, ImageClassifier)
        torch.testing.assert_close(network(IMAGES), made(NORMALISED), atol=1e-4, rtol=1e-4)
    else:
        assert isinstance(network, VisionTransformer)
        torch.testing.assert_close(tokens_of(network), made.forward_features(NORMALISED), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["ViTModel", "BeitModel", "BeitForMaskedImageModeling", "BeitForImageClassification"])
@torch.no_grad()
def test_folders_of_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, float] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 256, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}
    if name == "ViTModel":
        config = transformers.ViTConfig(**sizes)
    else:
        masked = name == "BeitForMaskedImageModeling"
        config = transformers.BeitConfig(
            **sizes, vocab_size=19, use_mask_token=masked, use_shared_relative_position_bias=True, num_labels=5
        )
    made = shaken(getattr(transformers, name)(config))
    made.save_pretrained(tmp_path / "theirs")
    about = import_model(ImportModel((str(tmp_path / "theirs"),), str(tmp_path / "imported")))
    assert "features of transformers" in about["certificate"]["differences"]
    loaded = load_with_preprocessing(str(tmp_path / "imported"), choose_compute("cpu", "fp32"))
    if name == "BeitForImageClassification":
        assert loaded.kind == "classifier"
        found, expected = loaded.network(IMAGES), made(NORMALISED).logits
    elif name == "BeitForMaskedImageModeling":
        assert loaded.kind == "masked image model"
        mask = torch.arange(16).expand(3, -1) % 2 == 1
        found = loaded.network(IMAGES, mask, mask.nonzero()[:, 1].view(3, 8))
        expected = made(NORMALISED, bool_masked_pos=mask).logits[:, 1::2]
    else:
        found, expected = tokens_of(loaded.backbone, normed=name == "ViTModel"), made(NORMALISED).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
