"""Recipes say what they should: the published numbers of the paper's, and stages that fit each other."""

import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.config import from_json, to_json
from smalti.core.rng import fold
from smalti.data.transforms.batch_transforms import Erasing, Mixing
from smalti.data.transforms.randaugment import RandAugment
from smalti.data.transforms.views import RandomResizedCrop, SquareCrop
from smalti.find_recipe import recipe_names
from smalti.models.cost_estimate import num_parameters
from smalti.models.mim import build_mim
from smalti.recipes import base, dalle, nano, paper, release, small, tiny
from smalti.runs.classification_task import Classification
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.training.optim import Optimiser

BOTH = [base, nano, paper, small, tiny]
IMAGENET = 1_281_167


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_stage_and_says_what_it_costs(name: str) -> None:
    module = importlib.import_module(f"smalti.recipes.{name}")
    configs = [getattr(module, verb)() for verb in ("train_tokenizer", "pretrain", "finetune") if hasattr(module, verb)]
    assert configs
    assert "\nHardware: " in (module.__doc__ or "")
    for config in configs:
        assert from_json(type(config), to_json(config)) == config


def test_the_readme_has_every_recipe_that_pretrains_and_says_which_fine_tune() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    listed = {
        name: row.endswith("| yes |")
        for row in re.findall(r"^\| `[a-z`, ]+` \| .*\|$", readme.partition("## Recipes")[2], re.M)
        for name in re.findall(r"`([a-z]+)`", row.split("|")[1])
    }
    modules = {name: importlib.import_module(f"smalti.recipes.{name}") for name in recipe_names()}
    assert listed == {name: hasattr(found, "finetune") for name, found in modules.items() if hasattr(found, "pretrain")}


@pytest.mark.parametrize("recipe", BOTH, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_tokenizer_is_trained_at_the_size_of_the_view_that_it_will_see(recipe: object) -> None:
    tokenizer, pretrain = recipe.train_tokenizer(), recipe.pretrain()  # type: ignore[attr-defined]
    assert isinstance(tokenizer, TrainTokenizer)
    assert isinstance(pretrain, Pretrain)
    rows, columns = pretrain.backbone.grid
    assert (rows * tokenizer.tokenizer.stride, columns * tokenizer.tokenizer.stride) == (tokenizer.data.side,) * 2


@pytest.mark.parametrize("recipe", [base, nano, small, tiny], ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_backbone_that_is_pretrained_can_be_fine_tuned(recipe: Any) -> None:
    pretrained, tuned = recipe.pretrain(), recipe.finetune()
    assert replace(tuned.backbone, drop_path_rate=0.0) == replace(pretrained.backbone, drop_path_rate=0.0)
    assert tuned.data.side >= pretrained.data.side


@pytest.mark.parametrize("config", [paper.pretrain(), release.pretrain()], ids=["paper", "release"])
def test_the_published_numbers_of_stage_two(config: Pretrain) -> None:
    """BEiT §2.5 and the released recipe: spec, A8."""
    plan, optimiser, vit = config.plan, config.optimiser.scaled_to(config.plan.batch_size), config.backbone
    assert (plan.steps, plan.batch_size) == (500_000, 2048)
    assert plan.steps * plan.batch_size / IMAGENET == pytest.approx(800, rel=1e-3)
    assert (optimiser.lr, optimiser.end_lr) == (1.5e-3, 1e-5)
    assert optimiser.lr_schedule(plan.steps).warmup == 6250 == plan.steps // 80
    assert (optimiser.betas, optimiser.eps, optimiser.weight_decay) == ((0.9, 0.999), 1e-8, 0.05)
    assert (optimiser.clip_grad, optimiser.decay_rule) == (3.0, "release")
    assert (vit.img_size, vit.patch_size, vit.drop_path_rate) == ((224, 224), 16, 0.1)
    assert (vit.embed_dim, vit.depth, vit.num_heads, vit.mlp_ratio) == (768, 12, 12, 4.0)
    assert config.jitter.strengths == (0.4, 0.4, 0.4)
    masked = config.masking(fold(0, np.arange(50)), vit.grid).sum(1)
    assert masked.max() == 75
    assert (masked.min() == 75) == (config == paper.pretrain())


def test_the_published_numbers_of_fine_tuning() -> None:
    """Those of the released code for a base network, pretrained on ImageNet-1K; its defaults where it names none."""
    config = base.finetune()
    plan, optimiser = config.plan, config.optimiser.scaled_to(1024)
    assert (plan.batch_size, round(plan.steps * plan.batch_size / IMAGENET)) == (1024, 100)
    assert (optimiser.lr, optimiser.end_lr, optimiser.layer_decay) == (4e-3, 1e-6, 0.65)
    assert optimiser.lr_schedule(plan.steps).warmup == plan.steps // 5
    assert (optimiser.betas, optimiser.eps, optimiser.weight_decay) == ((0.9, 0.999), 1e-8, 0.05)
    assert (config.backbone.img_size, config.backbone.drop_path_rate) == ((224, 224), 0.1)
    assert config.task == Classification(pooling="mean", label_smoothing=0.1, mixing=Mixing(0.8, 1.0, 1.0, 0.5))
    assert config.augment == RandAugment(operations=2, magnitude=9.0, spread=0.5, probability=0.5)
    assert config.erasing == Erasing(probability=0.25, area=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3))
    assert config.crop == RandomResizedCrop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5)
    assert not any(config.jitter.strengths), "timm leaves it out beside RandAugment"


def test_the_paper_is_a_plain_vit_and_the_release_changes_colours_first() -> None:
    assert num_parameters(paper.pretrain().backbone) == 85_798_656
    with torch.device("meta"):
        whole = build_mim(release.pretrain().backbone, vocab_size=8192)
    assert sum(parameter.numel() for parameter in whole.parameters()) == 91_965_776
    assert release.pretrain().backbone.positions == "shared_relative"
    assert not paper.pretrain().jitter.before_crop
    assert release.pretrain().jitter.before_crop
    assert release.pretrain().normalisation == "imagenet"


def test_the_published_schedules_of_the_tokenizer() -> None:
    """DALL-E, appendix A.2."""
    config = paper.train_tokenizer()
    steps = config.plan.steps
    assert (config.tokenizer.vocab_size, config.tokenizer.stride, config.data.side) == (8192, 8, 112)
    assert (steps, config.plan.batch_size, config.ema_decay) == (3_000_000, 512, 0.999)
    rate = config.optimiser.lr_schedule(steps)
    assert (rate(0), rate(600_000), rate(1_200_000), rate(steps)) == pytest.approx((1e-4, 5.0625e-5, 1.25e-6, 1.25e-6))
    temperature, beta = config.relaxation.annealing(steps), config.relaxation.ramp(steps)
    assert (temperature(0), temperature(150_000), temperature(steps)) == pytest.approx((1, 1 / 16, 1 / 16))
    assert (beta(1250), beta(2500), beta(5000), beta(steps)) == pytest.approx((0.9666, 3.3, 6.6, 6.6), abs=1e-4)
    assert (config.optimiser.betas, config.optimiser.weight_decay) == ((0.9, 0.999), 1e-4)


def test_recipes_that_claim_the_paper_cut_its_crops_from_whole_pictures_decoded_in_full() -> None:
    for config in (paper.train_tokenizer(), paper.pretrain(), release.pretrain(), dalle.train_tokenizer()):
        assert (config.data.memory, config.data.full_decode) == ("stream", True)
    for config in (paper.train_tokenizer(), paper.pretrain(), release.pretrain()):
        assert config.crop == RandomResizedCrop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, fallback="centre")
    assert dalle.train_tokenizer().crop == SquareCrop(scaled=(9 / 8, 12 / 8), flip=0.5)
    assert paper.pretrain().fp32_tokens
    assert release.pretrain().fp32_tokens


def test_no_other_recipe_has_taken_up_what_the_letter_asks_for() -> None:
    """Their runs have the bits that they had."""
    for recipe in (base, nano, small, tiny):
        verbs = (getattr(recipe, verb, None) for verb in ("train_tokenizer", "pretrain", "finetune"))
        for config in (verb() for verb in verbs if verb is not None):
            assert isinstance(config.crop, RandomResizedCrop)
            assert config.crop.fallback == "whole"
            assert not config.data.full_decode
            assert config.data.memory == "auto"
        assert recipe.train_tokenizer().relaxation.beta_schedule == "linear"
        assert not recipe.pretrain().fp32_tokens


def test_learning_rates_of_the_demo_are_absolute() -> None:
    """And no batch is computed in parts."""
    for config in (nano.train_tokenizer(), nano.pretrain(), tiny.train_tokenizer(), tiny.pretrain()):
        assert config.optimiser.scaled_to(8) == config.optimiser
        assert config.plan.accumulate == 1
    rates = Optimiser(lr=4e-3, warmup_ratio=0.08, betas=(0.9, 0.98), weight_decay=0.05, clip_grad=3.0, matrices="muon")
    assert nano.pretrain().optimiser == tiny.pretrain().optimiser == rates
