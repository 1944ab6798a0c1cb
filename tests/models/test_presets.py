"""Sizes by name: exact counts of parameters, and what the released variant changes."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from smalti.models import vit
from smalti.models.mim import build_mim
from smalti.models.vit import ViT
from smalti.recipes import nano

PRESETS = [vit.nano, vit.tiny, vit.small, vit.base, vit.large]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("config", "bare", "with_head"),
    [
        (vit.base(), 85_798_656, 92_099_072),
        (vit.large(), 303_301_632, 311_699_456),
        (vit.released(vit.base()), 85_665_360, 91_965_776),
        (vit.released(vit.large()), 303_136_192, 311_534_016),
    ],
)
def test_the_sizes_of_the_paper_have_the_parameters_of_the_published_models(
    config: ViT, bare: int, with_head: int
) -> None:
    with torch.device("meta"):
        assert count(config.build()) == bare
        assert count(build_mim(config, vocab_size=8192)) == with_head


@pytest.mark.parametrize(("preset", "millions"), [(vit.nano, 0.2), (vit.tiny, 5.5), (vit.small, 21.7)])
def test_the_smaller_sizes_have_the_parameters_they_state(preset: Callable[[], ViT], millions: float) -> None:
    with torch.device("meta"):
        assert count(preset().build()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_size_takes_any_grid_in_both_variants(preset: Callable[..., ViT]) -> None:
    paper = preset((32, 48), 8)
    released = vit.released(paper)
    assert paper.grid == released.grid == (4, 6)
    with torch.device("meta"):
        names = [set(config.build().state_dict()) for config in (paper, released)]
    assert "pos_embed" in names[0] - names[1]
    assert "rel_pos_bias.relative_position_bias_table" in names[1] - names[0]


def test_nano_is_the_backbone_of_its_recipe() -> None:
    assert dataclasses.replace(vit.nano(), in_chans=1) == nano.pretrain().backbone


def test_the_released_variant_starts_like_the_released_code() -> None:
    base, large = (vit.released(size()) for size in (vit.base, vit.large))
    assert (base.init, base.init_values) == ("trunc1", 0.1)
    assert (large.init, large.init_values) == ("trunc1", 1e-5)


def test_a_start_for_narrow_networks_stays_in_the_released_variant() -> None:
    assert vit.released(vit.tiny()).init == vit.tiny().init == "width"
