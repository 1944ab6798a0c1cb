"""Weights of other programs and of other variants compute in our networks what they computed there."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.core.errors import CheckpointError, UsageError
from smalti.functional.positions import num_rows
from smalti.models import vit
from smalti.models.mim import MaskedImageModel, build_mim
from smalti.models.vit import ViT
from smalti.training.init_weights import init_from_weights, resized
from smalti.weights.names import from_timm
from smalti.weights.read import from_huggingface
from smalti.weights.source import SourceWeights
from tests.other_names import (
    VOCABULARY,
    as_huggingface,
    as_released,
    as_timm_beit,
    as_timm_vit,
    drawn,
    huggingface_config,
)

PAPER = ViT(img_size=(16, 16), patch_size=4, embed_dim=16, depth=2, num_heads=2)
RELEASED = vit.released(PAPER)
CLASSIFIER = replace(RELEASED, positions="block_relative")
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def of_timm(weights: dict[str, Tensor]) -> SourceWeights:
    return SourceWeights("there", from_timm(weights))


def of_huggingface(config: ViT, kind: str, weights: dict[str, Tensor], **changes: Any) -> SourceWeights:
    return SourceWeights("there", from_huggingface(weights, huggingface_config(config, kind) | changes), config.grid, 2)


def ours(model: MaskedImageModel) -> SourceWeights:
    return SourceWeights("there", model.state_dict(), model.backbone.config.grid, model.backbone.config.num_heads)


def started(config: ViT, source: SourceWeights) -> tuple[MaskedImageModel, str]:
    model = build_mim(config, VOCABULARY, seed=7).eval()
    return model, init_from_weights(model, source)


def last(model: MaskedImageModel) -> Tensor:
    """All features, before the last norm."""
    found: list[Tensor] = []
    hook = model.backbone.norm.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    with torch.no_grad():
        model.backbone(IMAGES)
    hook.remove()
    return found[0]


def same_features(one: MaskedImageModel, other: MaskedImageModel) -> None:
    torch.testing.assert_close(last(one), last(other), rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"init_values": 0.3}])
def test_a_classifier_of_timm_without_its_head(changes: dict[str, Any]) -> None:
    there = drawn(replace(PAPER, **changes))
    model, line = started(there.backbone.config, of_timm(as_timm_vit(there)))
    assert torch.equal(model.backbone(IMAGES).patches, there.backbone(IMAGES).patches)
    count = len(there.backbone.state_dict())
    assert line == (
        f"from there: {count} tensors of the backbone; the mask token and the head are new; it does not say how many"
        " heads it has: 2, as configured"
    )
    fresh = build_mim(there.backbone.config, VOCABULARY, seed=7)
    assert torch.equal(model.state_dict()["mask_token"], fresh.state_dict()["mask_token"])
    assert torch.equal(model.head.weight, fresh.head.weight)


def test_a_classifier_of_beit_brings_no_last_norm() -> None:
    there = drawn(CLASSIFIER)
    model, line = started(CLASSIFIER, of_timm(as_timm_beit(there)))
    same_features(model, there)
    assert line.endswith("tensors of the backbone; the mask token, the head and the last norm are new")
    assert torch.equal(model.state_dict()["backbone.norm.weight"], torch.ones(16))


def test_the_released_checkpoint_brings_mask_token_and_head() -> None:
    there = drawn(RELEASED)
    model, line = started(RELEASED, of_timm(as_released(there)))
    count = len(there.backbone.state_dict())
    assert line == f"from there: {count} tensors of the backbone, the mask token and the head"
    mask = torch.arange(16).expand(2, -1) < 5
    index = torch.arange(5).expand(2, -1)
    assert torch.equal(model(IMAGES, mask, index), there(IMAGES, mask, index))


def test_a_masked_image_model_of_transformers() -> None:
    there = drawn(RELEASED)
    head = {f"lm_head.{name}": value for name, value in there.head.state_dict().items()}
    norm = {f"layernorm.{name}": value for name, value in there.backbone.norm.state_dict().items()}
    token = {"beit.embeddings.mask_token": there.state_dict()["mask_token"]}
    weights = as_huggingface(there, "beit.", **head, **norm, **token)
    weights = {name: value for name, value in weights.items() if not name.startswith("beit.layernorm")}
    model, line = started(RELEASED, of_huggingface(RELEASED, "beit", weights))
    assert line.endswith("the mask token and the head")
    mask, index = torch.arange(16).expand(2, -1) < 5, torch.arange(5).expand(2, -1)
    assert torch.equal(model(IMAGES, mask, index), there(IMAGES, mask, index))


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_vit_of_transformers(prefix: str) -> None:
    there = drawn(PAPER)
    more = {"classifier.weight": torch.zeros(3, 16)} if prefix else {"pooler.dense.weight": torch.zeros(16, 16)}
    model, line = started(PAPER, of_huggingface(PAPER, "vit", as_huggingface(there, prefix, **more)))
    assert torch.equal(model.backbone(IMAGES).cls, there.backbone(IMAGES).cls)
    assert line.endswith("tensors of the backbone; the mask token and the head are new")


def test_a_bare_beit_of_transformers_whose_norm_is_one_of_pooled_patches() -> None:
    there = drawn(CLASSIFIER)
    weights = as_huggingface(there, "", **{"pooler.layernorm.weight": torch.ones(16)})
    weights = {name: value for name, value in weights.items() if not name.startswith("layernorm.")}
    model, line = started(CLASSIFIER, of_huggingface(CLASSIFIER, "beit", weights))
    same_features(model, there)
    assert "the last norm are new" in line


@pytest.mark.parametrize(
    ("there", "here"),
    [
        (PAPER, replace(PAPER, k_bias=False)),
        (replace(PAPER, k_bias=False), PAPER),
        (RELEASED, CLASSIFIER),
        (RELEASED, replace(CLASSIFIER, k_bias=True)),
    ],
)
def test_another_form_of_the_same_network_computes_the_same(there: ViT, here: ViT) -> None:
    source = drawn(there)
    model, line = started(here, ours(source))
    same_features(model, source)
    torch.testing.assert_close(model.backbone(IMAGES).patches, source.backbone(IMAGES).patches, rtol=0, atol=1e-5)
    assert line.endswith("tensors of the backbone, the mask token and the head")


def test_a_vit_without_any_bias_of_attention() -> None:
    there = drawn(PAPER)
    blocks: Any = there.backbone.blocks
    with torch.no_grad():
        for block in blocks:
            block.attn.qkv.bias.zero_()
    weights = {name: value for name, value in as_timm_vit(there).items() if not name.endswith("qkv.bias")}
    same_features(started(PAPER, of_timm(weights))[0], there)


@pytest.mark.parametrize("config", [PAPER, RELEASED, CLASSIFIER])
def test_weights_of_another_grid_are_resized(config: ViT) -> None:
    there, here = drawn(config), replace(config, img_size=(24, 8))
    model, line = started(here, of_timm(as_released(there)))
    expected = here.build()
    expected.load_state_dict(resized(there.backbone.state_dict(), (4, 4), expected.config.grid))
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert "tensors of the backbone, the mask token and the head, for 6x2 patches instead of 4x4" in line


def test_positions_without_a_row_for_s_get_one_of_zeros() -> None:
    there = drawn(PAPER)
    assert there.backbone.pos_embed is not None
    with torch.no_grad():
        there.backbone.pos_embed[:, 0].zero_()
    weights = as_timm_vit(there)
    weights["pos_embed"] = weights["pos_embed"][:, 1:]
    same_features(started(PAPER, of_timm(weights))[0], there)
    del weights["cls_token"]
    assert "; the mask token, the head and [S] are new" in started(PAPER, of_timm(weights))[1]


def test_positions_of_the_configured_grid_need_not_be_of_a_square() -> None:
    wide = replace(PAPER, img_size=(12, 20))
    for config in (wide, replace(wide, positions="block_relative")):
        there = drawn(config)
        weights = of_timm(as_timm_vit(there)).weights
        assert SourceWeights("there", weights).grid_for(config) == (3, 5)
    bare = {"backbone.pos_embed": torch.zeros(1, 15, 16)}  # of [S] there is none
    assert SourceWeights("there", bare).grid_for(wide) == (3, 5)
    with pytest.raises(UsageError) as refusal:
        started(replace(PAPER, positions="block_relative"), of_timm(as_timm_vit(there)))
    assert str(refusal.value) == (
        "there has positions for a grid that is not square; blocks.0.attn.relative_position_bias_table has"
        f" {num_rows((3, 5))} rows; set --backbone.img-size to the height and width it was trained with"
    )


def test_a_head_of_another_vocabulary_is_new() -> None:
    there = drawn(RELEASED)
    model = build_mim(RELEASED, VOCABULARY + 1)
    before = model.head.weight.clone()
    assert init_from_weights(model, ours(there)).endswith("tensors of the backbone and the mask token; the head is new")
    assert torch.equal(model.head.weight, before)
    assert torch.equal(model.state_dict()["mask_token"], there.state_dict()["mask_token"])


@pytest.mark.parametrize(
    ("there", "changes", "message"),
    [
        (PAPER, {"embed_dim": 32}, "embed_dim 16, and the backbone has embed_dim 32; use --backbone.embed-dim 16"),
        (PAPER, {"depth": 3}, "depth 2, and the backbone has depth 3; use --backbone.depth 2"),
        (PAPER, {"num_heads": 4}, "num_heads 2, and the backbone has num_heads 4; use --backbone.num-heads 2"),
        (PAPER, {"mlp_ratio": 3.0}, "mlp_ratio 4.0, and the backbone has mlp_ratio 3.0; use --backbone.mlp-ratio 4.0"),
        (PAPER, {"patch_size": 8}, "patch_size 4, and the backbone has patch_size 8; use --backbone.patch-size 4"),
        (PAPER, {"in_chans": 1}, "in_chans 3, and the backbone has in_chans 1; use --backbone.in-chans 3"),
        (
            PAPER,
            {"init_values": 0.1},
            "init_values None, and the backbone has init_values 0.1; use --backbone.init-values None",
        ),
        (
            CLASSIFIER,
            {"init_values": None},
            "init_values 0.1, and the backbone has init_values None; use --backbone.init-values 0.1",
        ),
        (
            PAPER,
            {"positions": "shared_relative", "depth": 1},
            "depth 2, positions absolute, and the backbone has depth 1, positions shared_relative; use --backbone.depth"
            " 2 --backbone.positions absolute",
        ),
        (
            CLASSIFIER,
            {"positions": "shared_relative"},
            "positions block_relative, and the backbone has positions shared_relative; the tables of its blocks cannot"
            " become one that all share; use --backbone.positions block_relative",
        ),
    ],
)
def test_another_backbone_is_refused_with_both_values_and_the_flags(
    there: ViT, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        started(replace(there, **changes), ours(drawn(there)))
    assert str(refusal.value) == f"there has {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": None}, "the positions of there: none that is known; our backbone has one kind"),
        (
            {"rel_pos_bias.relative_position_bias_table": torch.zeros(52, 2)},
            "the positions of there: absolute and shared_relative; our backbone has one kind",
        ),
        ({"blocks.1.mlp.fc1.bias": None}, "there has no blocks.1.mlp.fc1.bias; it is not whole"),
        ({"blocks.0.mlp.fc1.weight": None}, "there has no backbone.blocks.0.mlp.fc1.weight; it holds no backbone"),
        (
            {"blocks.0.attn.q_norm.weight": torch.ones(8)},
            "the weights of there do not fit; backbone.blocks.0.attn.q_norm.weight is not known",
        ),
        (
            {"norm.weight": torch.ones(8)},
            "the weights of there do not fit; backbone.norm.weight is (8,), expected (16,)",
        ),
    ],
)
def test_a_network_that_is_not_ours_is_refused(change: dict[str, Tensor | None], message: str) -> None:
    weights = as_timm_vit(drawn(PAPER)) | change
    with pytest.raises(CheckpointError) as refusal:
        started(PAPER, of_timm({name: value for name, value in weights.items() if value is not None}))
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (PAPER, {"model_type": "dinov2"}, "config.json is of a model_type 'dinov2'; beit and vit are known"),
        (PAPER, {"hidden_act": "relu"}, "config.json has the hidden_act 'relu'; our backbone has gelu"),
        (
            PAPER,
            {"image_size": None},
            "config.json does not describe the network; image_size, patch_size and num_attention_heads are needed",
        ),
        (
            RELEASED,
            {"image_size": [16, 24]},
            "relative positions on a grid of 4x6 patches; transformers has rows and columns of its tables in another"
            " order where they differ",
        ),
    ],
)
def test_another_network_of_transformers_is_refused(config: ViT, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        of_huggingface(config, "beit", as_huggingface(drawn(config), ""), **changes)
    assert str(refusal.value) == message


def test_two_last_norms_are_refused() -> None:
    weights = as_huggingface(drawn(PAPER), "beit.", **{"layernorm.weight": torch.ones(16)})
    with pytest.raises(CheckpointError) as refusal:
        of_huggingface(PAPER, "beit", weights)
    assert str(refusal.value) == (
        "the weights have two last norms; our backbone has one; it was made with use_mean_pooling false"
    )
