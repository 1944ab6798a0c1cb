"""How weights start: range, spread, and what is left alone."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.models.mim import build_mim
from smalti.models.vit import ViT

CONFIG = ViT(img_size=(32, 32), patch_size=8, embed_dim=192, depth=4, num_heads=3)
TOKENS = ("cls_token", "pos_embed", "mask_token")
SPREAD = {"uniform": (0.02, 0.01155), "trunc1": (0.02, 0.01079), "trunc2": (0.04, 0.01759), "width": (0.06929, 0.04)}
"""Largest value and standard deviation at width 192: 0.02/√3; of a normal of 0.02 cut at one and at two of its
deviations; and 0.02·√(768/192) = 0.04, whose uniform range is √3 times that."""


def weights_of(config: ViT) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in build_mim(config, vocab_size=512).named_parameters()}


def scale_of(name: str) -> float:
    """1/√(2l) of the output matrices of block l, counted from 1; 1 of all else."""
    rescaled = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
    return 1 / math.sqrt(2 * (int(name.split("blocks.")[1].split(".")[0]) + 1)) if rescaled else 1.0


@pytest.mark.parametrize("init", SPREAD)
def test_weights_have_the_range_and_spread_of_their_rule(init: Any) -> None:
    seen = 0
    for name, values in weights_of(dataclasses.replace(CONFIG, init=init)).items():
        if values.ndim < 2:
            continue
        bound, std = SPREAD["uniform" if name.endswith(TOKENS) and init == "width" else init]
        assert 0 < float(values.abs().max()) <= bound * scale_of(name) * (1 + 1e-4), name
        if values.numel() > 30_000:
            assert float(values.abs().max()) > 0.95 * bound * scale_of(name), name
            assert float(values.std()) == pytest.approx(std * scale_of(name), rel=0.01), name
            seen += 1
    assert seen == 4 * 4 + 2


@pytest.mark.parametrize("init", SPREAD)
def test_a_cut_normal_is_densest_in_the_middle_and_a_uniform_one_is_flat(init: Any) -> None:
    values = weights_of(dataclasses.replace(CONFIG, init=init))["head.weight"]
    middle = float((values.abs() < SPREAD[init][0] / 2).double().mean())
    assert middle == pytest.approx({"trunc1": 0.5609, "trunc2": 0.7152}.get(init, 0.5), abs=0.01)


@pytest.mark.parametrize("init", [*SPREAD, "xavier"])
def test_vectors_keep_their_usual_start(init: Any) -> None:
    config = dataclasses.replace(CONFIG, init=init, positions="shared_relative", init_values=0.1, k_bias=False)
    for name, values in weights_of(config).items():
        if values.ndim == 1 or name.endswith("bias_table"):
            start = 0.1 if "gamma" in name else 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert torch.equal(values, torch.full_like(values, start)), name


def test_xavier_initialisation_has_its_bound_and_spread() -> None:
    config = dataclasses.replace(CONFIG, embed_dim=96, depth=2, init="xavier")
    for name, values in weights_of(config).items():
        if values.ndim < 2 or name.endswith(TOKENS):
            continue
        fan_out, fan_in = values.flatten(1).shape
        bound = math.sqrt(6 / (fan_in + fan_out)) * scale_of(name)
        assert 0.99 * bound < float(values.abs().max()) <= bound * (1 + 1e-6), name
        assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03), name


@pytest.mark.parametrize("init", ["xavier", "width"])
def test_positions_and_tokens_are_those_of_the_paper_under_a_rule_for_matrices(init: Any) -> None:
    weights = weights_of(dataclasses.replace(CONFIG, init=init))
    for name in ("backbone.cls_token", "backbone.pos_embed", "mask_token"):
        assert 0 < float(weights[name].abs().max()) <= 0.02
