"""The layout of the released code: the names that its checkpoints have, in safetensors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from smalti.core.errors import UsageError
from smalti.exporting import unilm
from smalti.models.decoder import CrossAttention
from smalti.models.vit import ViT
from smalti.weights.read import read_source
from tests.exporting.networks import PAPER, RELEASED, VARIANTS, backbone, classifier, exported, masked, segmenter

_BLOCK = {"gamma_1", "gamma_2", "attn.q_bias", "attn.v_bias", "attn.qkv.weight"}
_BLOCK |= {
    f"{part}.{kind}" for part in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")
}


def keys(weights: dict[str, torch.Tensor]) -> tuple[set[str], set[str]]:
    """Names outside of blocks, and those of the first block."""
    first = {name.removeprefix("blocks.0.") for name in weights if name.startswith("blocks.0.")}
    return {name for name in weights if not name.startswith("blocks.")}, first


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_masked_image_models_are_read_back(config: ViT, tmp_path: Path) -> None:
    exported(masked(config), unilm, tmp_path)


def test_pretraining_has_the_published_names(tmp_path: Path) -> None:
    exported(masked(RELEASED), unilm, tmp_path)
    outside, block = keys(load_file(tmp_path / "model.safetensors"))
    assert block == _BLOCK
    assert outside == {
        *("cls_token", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"),
        *("lm_head.weight", "lm_head.bias"),
        *(f"rel_pos_bias.relative_position_{kind}" for kind in ("bias_table", "index")),
    }
    assert read_source(str(tmp_path)).weights.keys() == masked(RELEASED).weights().keys()


def test_a_classifier_has_the_published_names(tmp_path: Path) -> None:
    exported(classifier(RELEASED), unilm, tmp_path)
    outside, block = keys(load_file(tmp_path / "model.safetensors"))
    assert block == _BLOCK | {"attn.relative_position_bias_table", "attn.relative_position_index"}
    parts = ("patch_embed.proj", "fc_norm", "head")
    assert outside == {"cls_token", *(f"{part}.{kind}" for part in parts for kind in ("weight", "bias"))}


def test_a_classifier_is_that_of_timm(tmp_path: Path) -> None:
    """Which reads the released checkpoints of classifiers."""
    timm = pytest.importorskip("timm")
    loaded = classifier(RELEASED)
    exported(loaded, unilm, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 3}
    theirs = timm.models.beit.Beit(**sizes, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1).eval()
    theirs.load_state_dict({name: value for name, value in weights.items() if not name.endswith("index")})
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = loaded.network(images)
    torch.testing.assert_close(theirs(loaded.preprocessing.normalised(images)), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_parts_are_read_back(pooling: str, tmp_path: Path) -> None:
    exported(classifier(PAPER, pooling), unilm, tmp_path)  # type: ignore[arg-type]
    (tmp_path / "cut").mkdir()
    exported(backbone(RELEASED).truncated(2), unilm, tmp_path / "cut")


def test_what_the_released_code_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no decoder but a linear head; export the backbone"):
        unilm.write(masked(PAPER, CrossAttention()), tmp_path)
    with pytest.raises(UsageError, match="no segmenter"):
        unilm.write(segmenter(PAPER), tmp_path)
    assert list(tmp_path.iterdir()) == []
