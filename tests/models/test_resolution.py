"""Weights of one grid in a network for another."""

import dataclasses
from typing import Any

import pytest
import torch

from smalti.core.errors import CheckpointError
from smalti.functional.positions import resize_positions, resize_table
from smalti.models.vit import VisionTransformer, ViT
from smalti.training.init_weights import resized

OLD = ViT(img_size=(12, 20), patch_size=4, embed_dim=16, depth=2, num_heads=2)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"positions": "shared_relative", "init_values": 0.1, "k_bias": False},
    {"positions": "block_relative"},
]


def drawn(config: ViT) -> VisionTransformer:
    model = config.build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("changes", VARIANTS)
def test_only_what_depends_on_the_grid_is_resized(changes: dict[str, Any]) -> None:
    old = drawn(dataclasses.replace(OLD, **changes))
    new = dataclasses.replace(old.config, img_size=(24, 16)).build()
    new.load_state_dict(resized(old.state_dict(), (3, 5), new.config.grid))
    found = 0
    for name, value in new.state_dict().items():
        before = old.state_dict()[name]
        if name == "pos_embed":
            expected = resize_positions(before, (3, 5), (6, 4))
        elif name.endswith("bias_table"):
            expected = resize_table(before, (3, 5), (6, 4))
        else:
            expected = before
        found += expected is not before
        assert torch.equal(value, expected), name
    assert found == (2 if changes.get("positions") == "block_relative" else 1)


@pytest.mark.parametrize("changes", VARIANTS)
def test_at_the_same_grid_the_features_are_the_same(changes: dict[str, Any]) -> None:
    old = drawn(dataclasses.replace(OLD, **changes))
    new, images = old.config.build(seed=1), torch.rand(2, 3, 12, 20)
    new.load_state_dict(resized(old.state_dict(), (3, 5), new.config.grid))
    assert torch.equal(new(images).patches, old(images).patches)


@pytest.mark.parametrize("changes", VARIANTS)
def test_weights_of_another_grid_than_named_are_refused(changes: dict[str, Any]) -> None:
    state = drawn(dataclasses.replace(OLD, **changes)).state_dict()
    with pytest.raises(CheckpointError, match=r"has the shape .*; it is not of a grid of 3x4 patches; name the grid"):
        resized(state, (3, 4), (5, 5))
