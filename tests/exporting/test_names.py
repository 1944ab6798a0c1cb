"""Names are turned into those of other programs and back, and no bit of a weight changes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from smalti.models.vit import ViT
from smalti.weights import names
from smalti.weights.read import from_huggingface
from smalti.weights.source import SourceWeights
from tests.exporting.networks import BLOCKS, PAPER, RELEASED, SCALED, SHARED, VARIANTS, masked
from tests.other_names import huggingface_config

EVERY = pytest.mark.parametrize("config", [PAPER, BLOCKS, RELEASED, SHARED, SCALED])


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


def of_backbone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name.startswith("backbone.")}


@EVERY
@pytest.mark.parametrize("modules", [True, False])
def test_names_of_timm_and_back(config: ViT, modules: bool) -> None:
    weights = of_backbone(masked(config).weights())
    theirs = names.to_timm(weights, layer_scale_modules=modules)
    assert not any(name.startswith("backbone.") for name in theirs)
    assert any("ls1.gamma" in name for name in theirs) == (modules and config.init_values is not None)
    assert same(names.from_timm(theirs), weights)


@EVERY
def test_names_of_the_released_code_and_back(config: ViT) -> None:
    weights = masked(config).weights()
    theirs = names.to_released(weights)
    assert {"mask_token", "lm_head.weight", "cls_token"} <= theirs.keys()
    assert same(names.from_timm(theirs), weights)


@EVERY
@pytest.mark.parametrize("prefix", ["", "beit.", "vit."])
def test_names_of_transformers_and_back(config: ViT, prefix: str) -> None:
    weights = masked(config).weights()
    weights = weights if prefix == "beit." else of_backbone(weights)
    theirs = names.to_huggingface(weights, prefix)
    assert f"{prefix}encoder.layer.0.attention.attention.query.weight" in theirs
    assert ("lm_head.weight" in theirs) == ("layernorm.weight" in theirs and prefix == "beit.")
    assert same(from_huggingface(theirs, huggingface_config(config, prefix[:-1] or "beit")), weights)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_survives_the_way_to_timm(config: ViT) -> None:
    """As written and read: tables for each block, one bias or two."""
    weights = of_backbone(masked(config).weights())
    absolute = config.positions == "absolute"
    theirs = config if absolute else replace(config, positions="block_relative")
    source = SourceWeights("here", weights, config.grid, config.num_heads)
    there = names.to_timm(source.as_configured(theirs), layer_scale_modules=absolute)
    back = SourceWeights("there", names.from_timm(there), config.grid, config.num_heads)
    back.require_fit(config)
    assert same(back.as_configured(config), weights)


def test_different_tables_of_blocks_do_not_become_one() -> None:
    source = SourceWeights("there", of_backbone(masked(BLOCKS).weights()), BLOCKS.grid, BLOCKS.num_heads)
    with pytest.raises(Exception, match="cannot become one that all share"):
        source.require_fit(replace(BLOCKS, positions="shared_relative"))


def test_foreign_names_are_kept_for_the_message_that_refuses_them() -> None:
    odd = {"blocks.": torch.zeros(1), "blocks.x": torch.zeros(1), "encoder.layer.": torch.zeros(1)}
    assert names.from_timm(odd).keys() == {"backbone.blocks.", "backbone.blocks.x", "backbone.encoder.layer."}
    assert len(names.from_huggingface(odd)) == 3
