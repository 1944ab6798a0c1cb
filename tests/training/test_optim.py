"""Which weights decay, and how the learning rate moves."""

from typing import Any

import pytest
import torch
from torch import nn

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.core.errors import UsageError
from smalti.models.classifier import build_classifier
from smalti.models.mim import build_mim
from smalti.models.vit import ViT
from smalti.training.objectives import Classify
from smalti.training.optim import DecayRule, Optimiser, is_decayed, layer_of
from smalti.training.trainer import Trainer
from smalti.training.training_plan import Plan

MODEL = build_mim(ViT(img_size=(8, 8), patch_size=4, embed_dim=8, depth=2, num_heads=2), vocab_size=5)


def test_decayed_are_the_matrices_and_the_mask_token_only() -> None:
    decayed = {name for name, p in MODEL.named_parameters() if is_decayed(name, p)}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    matrices = {f"backbone.blocks.{i}.{part}.weight" for i in (0, 1) for part in parts}
    assert decayed == matrices | {"mask_token", "head.weight", "backbone.patch_embed.proj.weight"}


@pytest.mark.parametrize(
    ("name", "shape", "release", "timm"),
    [
        ("backbone.rel_pos_bias.relative_position_bias_table", (9, 2), True, False),
        ("backbone.blocks.0.attn.relative_position_bias_table", (9, 2), True, False),
        ("mask_token", (1, 1, 8), True, True),
        ("backbone.blocks.0.attn.qkv.weight", (24, 8), True, True),
        ("backbone.cls_token", (1, 1, 8), False, False),
        ("backbone.pos_embed", (1, 5, 8), False, False),
        ("backbone.blocks.0.gamma_1", (8,), False, False),
        ("backbone.blocks.0.norm1.weight", (8,), False, False),
        ("backbone.blocks.0.attn.q_bias", (8,), False, False),
        ("head.bias", (5,), False, False),
    ],
)
def test_the_rules_differ_in_the_table_of_relative_positions_only(
    name: str, shape: tuple[int, ...], release: bool, timm: bool
) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    assert (is_decayed(name, parameter, "release"), is_decayed(name, parameter, "timm")) == (release, timm)
    assert is_decayed(name, parameter) == release


class WithTable(nn.Module):
    """A matrix and a table of relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 2, bias=False)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))


@pytest.mark.parametrize(("rule", "decayed"), [("release", 2), ("timm", 1)])
def test_the_rule_reaches_the_optimiser(rule: DecayRule, decayed: int) -> None:
    groups = Optimiser(decay_rule=rule).build(WithTable()).param_groups
    assert sum(len(group["params"]) for group in groups if group["weight_decay"] > 0) == decayed


def test_every_parameter_is_in_one_group_with_its_decay() -> None:
    optimizer = Optimiser(weight_decay=0.3).build(MODEL)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(MODEL.parameters()))
    for name, parameter in MODEL.named_parameters():
        assert decay[id(parameter)] == (0.3 if is_decayed(name, parameter) else 0.0), name


def test_frozen_parameters_are_left_out() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    optimizer = Optimiser().build(layer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_the_first_step_is_lr_against_the_sign_of_the_gradient_plus_the_decay() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    optimizer = Optimiser(lr=0.1, weight_decay=0.5).build(layer)
    (layer.weight * torch.tensor([1.0, -2.0, 30.0])).sum().backward()
    optimizer.step()
    expected = before * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([1.0, -1.0, 1.0])
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_betas_and_eps_reach_the_optimiser() -> None:
    group = Optimiser(betas=(0.8, 0.98), eps=1e-6).build(MODEL).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.8, 0.98), 1e-6)


def test_the_schedule_warms_up_peaks_and_ends_where_it_should() -> None:
    schedule = Optimiser(lr=1.0, end_lr=0.1, warmup_ratio=0.1).lr_schedule(1000)
    assert [schedule(step) for step in (0, 50, 100, 550, 1000)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])


def test_the_decay_may_end_before_the_run_does() -> None:
    schedule = Optimiser(lr=1.0, end_lr=0.1, warmup_ratio=0.1, decay_ratio=0.4).lr_schedule(1000)
    assert [schedule(step) for step in (100, 250, 400, 401, 1000)] == pytest.approx([1, 0.55, 0.1, 0.1, 0.1])


def test_a_learning_rate_without_a_batch_is_absolute() -> None:
    assert Optimiser(lr=0.3).scaled_to(64) == Optimiser(lr=0.3)
    assert Optimiser(lr=0.3).scaling(64) == ""


@pytest.mark.parametrize(("batch_size", "factor"), [(64, 1 / 32), (2048, 1), (4096, 2)])
def test_a_learning_rate_at_a_batch_is_in_proportion_to_that_of_the_run(batch_size: int, factor: float) -> None:
    meant = Optimiser(lr=1.5e-3, end_lr=1e-5, lr_batch_size=2048)
    used = meant.scaled_to(batch_size)
    assert (used.lr, used.end_lr) == pytest.approx((1.5e-3 * factor, 1e-5 * factor))
    assert used.scaled_to(batch_size) == used
    peak = used.lr_schedule(800)
    assert max(peak(step) for step in range(801)) == pytest.approx(1.5e-3 * factor)


def test_the_scaling_is_said_in_a_line() -> None:
    said = Optimiser(lr=1.5e-3, lr_batch_size=2048).scaling(64)
    assert said == "learning rate 1.5e-3 at batch 2048 -> 4.7e-5 at batch 64"


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_short_runs_have_a_schedule_too(steps: int) -> None:
    schedule = Optimiser(lr=1.0, warmup_ratio=0.99).lr_schedule(steps)
    assert schedule(steps) == pytest.approx(1e-5)
    assert schedule(schedule.warmup) == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, "a learning rate of 0.0; use a positive one"),
        ({"warmup_ratio": 1.0}, "a warm-up ratio of 1.0"),
        ({"lr_batch_size": 0}, "a learning rate at a batch of 0; use at least 1, or none"),
        ({"decay_ratio": 1.5}, "a decay ratio of 1.5; use a share of the steps in"),
        ({"warmup_ratio": 0.5, "decay_ratio": 0.5}, "a decay ratio of 0.5; use a share of the steps in"),
        ({"layer_decay": 0.0}, "a layer decay of 0.0; use one in"),
        ({"layer_decay": 1.5}, "a layer decay of 1.5; use one in"),
        ({"clip_grad": 0.0}, "a gradient norm of 0.0; use a positive one"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Optimiser(**fields)


CLASSIFIER = build_classifier(
    ViT(img_size=(8, 8), patch_size=4, embed_dim=8, depth=2, num_heads=2, positions="shared_relative"), num_classes=3
)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("backbone.cls_token", 0),
        ("mask_token", 0),
        ("backbone.pos_embed", 0),
        ("backbone.patch_embed.proj.weight", 0),
        ("backbone.blocks.0.attn.qkv.weight", 1),
        ("backbone.blocks.1.gamma_1", 2),
        ("backbone.blocks.1.attn.relative_position_bias_table", 2),
        ("backbone.rel_pos_bias.relative_position_bias_table", 3),
        ("backbone.norm.weight", 3),
        ("fc_norm.weight", 3),
        ("head.bias", 3),
        ("decoder.mask_token", 3),
        ("decoder.blocks.0.attn.kv.weight", 3),
        ("aggregation.blocks.0.attn.qkv.weight", 3),
    ],
)
def test_layers_are_counted_from_the_patches_to_the_head(name: str, layer: int) -> None:
    assert layer_of(name, top=3) == layer


def test_the_learning_rate_falls_from_layer_to_layer_and_weight_decay_stays() -> None:
    optimizer = Optimiser(layer_decay=0.5, weight_decay=0.3).build(CLASSIFIER)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(list(CLASSIFIER.parameters()))
    for name, parameter in CLASSIFIER.named_parameters():
        group = groups[id(parameter)]
        assert group["lr_scale"] == 0.5 ** (3 - layer_of(name, 3)), name
        assert group["weight_decay"] == (0.3 if is_decayed(name, parameter) else 0.0), name


def test_without_layer_decay_there_are_the_same_two_groups_as_ever() -> None:
    groups = Optimiser(weight_decay=0.3).build(MODEL).param_groups
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [(0.3, 1.0), (0.0, 1.0)]


def test_a_network_without_blocks_has_one_layer() -> None:
    layer = nn.Linear(2, 2)
    assert {group["lr_scale"] for group in Optimiser(layer_decay=0.5).build(layer).param_groups} == {1.0}


def test_the_first_step_of_a_layer_is_as_long_as_its_rate() -> None:
    model = build_classifier(ViT(img_size=(8, 8), patch_size=4, embed_dim=8, depth=2, num_heads=2), num_classes=3)
    optimiser = Optimiser(lr=0.1, warmup_ratio=0.0, eps=1e-14, weight_decay=0.0, layer_decay=0.5)
    trainer = Trainer(Classify(model), optimiser, Plan(steps=10, batch_size=4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = Batch(torch.rand(4, 3, 8, 8), torch.arange(4), torch.arange(4), label=torch.tensor([0, 1, 2, 0]))
    trainer.train_step(batch, Compute(torch.device("cpu"), torch.float32))
    for name, parameter in model.named_parameters():
        moved = float((parameter.detach() - before[name]).abs().max())
        assert moved == pytest.approx(trainer.lr(1) * 0.5 ** (3 - layer_of(name, 3)), rel=1e-3), name


def test_a_constant_schedule_stays_at_the_rate_of_its_warm_up() -> None:
    rates = Optimiser(lr=1.0, end_lr=0.1, warmup_ratio=0.1, schedule="constant").lr_schedule(100)
    assert [rates(step) for step in (0, 5, 10, 50, 99, 200)] == [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
