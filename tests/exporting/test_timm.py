"""What timm computes from an export, in both ways that it loads one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.core.errors import UsageError
from smalti.exporting import timm as for_timm
from smalti.exporting.certificate import sample_images
from smalti.exporting.loaded_model import LoadedModel
from smalti.models import vit
from smalti.models.vit import ViT
from smalti.weights.read import read_source
from tests.exporting.networks import (
    BASE,
    GREY,
    PAPER,
    RELEASED,
    VARIANTS,
    WIDE,
    backbone,
    classifier,
    exported,
    masked,
    run,
    segmenter,
)

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("config", [*VARIANTS.values(), WIDE], ids=[*VARIANTS, "wide"])
def test_features(config: ViT, tmp_path: Path) -> None:
    loaded = backbone(config)
    snippet, _ = exported(loaded, for_timm, tmp_path)
    images = sample_images(loaded.preprocessing)
    shown = loaded.preprocessing.normalised(images)
    made = run(snippet)
    with torch.no_grad():
        pooled = loaded.network(images).patches.mean(1)
        torch.testing.assert_close(made["model"](shown), pooled, rtol=1e-4, atol=1e-4)
        maps = made["maps"](shown)
        assert made["other"](shown).shape == (16, 10)
    assert maps[-1].shape == (16, config.embed_dim, *config.grid)
    assert read_source(str(tmp_path)).depth == config.depth


def test_maps_are_the_outputs_of_blocks(tmp_path: Path) -> None:
    loaded = backbone(RELEASED)
    exported(loaded, for_timm, tmp_path)
    maps = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=(0, 1, 2)).eval()
    images = sample_images(loaded.preprocessing)
    with torch.no_grad():
        layers = loaded.backbone.encode(loaded.backbone.embed(images), layers=True).layers
        for ours, theirs in zip(layers, maps(loaded.preprocessing.normalised(images)), strict=True):
            torch.testing.assert_close(theirs.flatten(2).transpose(1, 2), ours[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("config", [PAPER, RELEASED, GREY])
def test_classifiers(config: ViT, pooling: str, tmp_path: Path) -> None:
    exported(classifier(config, pooling), for_timm, tmp_path)  # type: ignore[arg-type]
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == ["cat", "dog", "newt"]


@pytest.mark.parametrize("config", [PAPER, RELEASED, WIDE])
def test_the_output_of_a_block(config: ViT, tmp_path: Path) -> None:
    """Without the final norm, as the battery measures it."""
    loaded = backbone(config).truncated(2)
    exported(loaded, for_timm, tmp_path)
    images = sample_images(loaded.preprocessing)
    with torch.no_grad():
        whole = backbone(config).backbone
        layers = whole.encode(whole.embed(images), layers=True).layers
        found = loaded.backbone(images)
    torch.testing.assert_close(found.patches, layers[1][:, 1:], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "name", "arguments"),
    [
        (vit.base(), "vit_base_patch16_224", {}),
        (vit.large((384, 384)), "vit_large_patch16_224", {"img_size": (384, 384)}),
        (vit.small(), "vit_small_patch16_224", {}),
        (vit.tiny(), "vit_tiny_patch16_224", {}),
        (vit.released(vit.base()), "beit_base_patch16_224", {"init_values": 0.1}),
        (vit.released(vit.large()), "beit_large_patch16_224", {"init_values": 1e-5}),
        (BASE, "vit_base_patch16_224", {"embed_dim": 768, "depth": 1, "num_heads": 12}),
    ],
)
def test_the_registered_name_of_a_shape(config: ViT, name: str, arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        loaded = LoadedModel(vit.VisionTransformer(config))
        made = for_timm.architecture(loaded)
        ours = {name: value.shape for name, value in loaded.network.named_parameters() if "rel_pos" not in name}
        theirs = dict(timm.create_model(made.name, **made.arguments).named_parameters())
    norm = {"fc_norm": False} if config.positions == "absolute" else {"use_fc_norm": False}
    assert made.name == name
    assert made.arguments == arguments | {"num_classes": 0, "global_pool": "avg"} | norm
    assert all(theirs[name].shape == shape for name, shape in ours.items())


def test_what_timm_does_not_have(tmp_path: Path) -> None:
    for loaded in (masked(PAPER), segmenter(PAPER)):
        with pytest.raises(UsageError, match=r"timm has no .*; export the backbone: --part backbone"):
            for_timm.write(loaded, tmp_path)
    assert list(tmp_path.iterdir()) == []
