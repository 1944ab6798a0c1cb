"""Which weights decay, and how the learning rate moves."""

from typing import Any

import pytest
import torch
from torch import nn

from smalti.core.errors import UsageError
from smalti.models.mim import build_mim
from smalti.models.vit import ViT
from smalti.training.optim import AdamW, is_decayed

MODEL = build_mim(ViT(img_size=(8, 8), patch_size=4, embed_dim=8, depth=2, num_heads=2), vocab_size=5)


def test_decayed_are_the_matrices_and_the_mask_token_only() -> None:
    decayed = {name for name, p in MODEL.named_parameters() if is_decayed(name, p)}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    matrices = {f"backbone.blocks.{i}.{part}.weight" for i in (0, 1) for part in parts}
    assert decayed == matrices | {"mask_token", "head.weight", "backbone.patch_embed.proj.weight"}


def test_every_parameter_is_in_one_group_with_its_decay() -> None:
    optimizer = AdamW(weight_decay=0.3).build(MODEL)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(MODEL.parameters()))
    for name, parameter in MODEL.named_parameters():
        assert decay[id(parameter)] == (0.3 if is_decayed(name, parameter) else 0.0), name


def test_frozen_parameters_are_left_out() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    optimizer = AdamW().build(layer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_the_first_step_is_lr_against_the_sign_of_the_gradient_plus_the_decay() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    optimizer = AdamW(lr=0.1, weight_decay=0.5).build(layer)
    (layer.weight * torch.tensor([1.0, -2.0, 30.0])).sum().backward()
    optimizer.step()
    expected = before * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([1.0, -1.0, 1.0])
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_betas_and_eps_reach_the_optimiser() -> None:
    group = AdamW(betas=(0.8, 0.98), eps=1e-6).build(MODEL).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.8, 0.98), 1e-6)


def test_the_schedule_warms_up_peaks_and_ends_where_it_should() -> None:
    schedule = AdamW(lr=1.0, end_lr=0.1, warmup_ratio=0.1).schedule(1000)
    assert [schedule(step) for step in (0, 50, 100, 550, 1000)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_short_runs_have_a_schedule_too(steps: int) -> None:
    schedule = AdamW(lr=1.0, warmup_ratio=0.99).schedule(steps)
    assert schedule(steps) == pytest.approx(1e-5)
    assert schedule(schedule.warmup) == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, "a learning rate of 0.0; use a positive one"),
        ({"warmup_ratio": 1.0}, "a warm-up ratio of 1.0"),
        ({"clip_grad": 0.0}, "a gradient norm of 0.0; use a positive one"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AdamW(**fields)
