"""docs/paper-map.md names what exists, and its numbers are those of the recipes, of arithmetic and of a count."""

import importlib
import math
import re
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smalti import cli
from smalti.core.config import leaves
from smalti.core.rng import fold
from smalti.data.load import _MAX_HELD_OUT
from smalti.data.splits import hold_out
from smalti.data.transforms.views import RandomResizedCrop, SquareCrop
from smalti.evaluation.likelihood import BITS_OF_8_BIT_PIXELS
from smalti.find_recipe import recipe_names
from smalti.flags import flags_of
from smalti.functional.codebook import MAX_DEFAULT_VOCAB, MIN_DEFAULT_VOCAB, default_vocab_size
from smalti.functional.masking import Blockwise
from smalti.functional.published_masking import Algorithm1, Release
from smalti.functional.schedules import Cosine
from smalti.recipes import base, dalle, nano, paper, release, small, tiny
from smalti.runs.finetune import Finetune
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.segmentation_task import Segmentation
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.dalle import DallE

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "paper-map.md").read_text()
EQUATIONS, DIFFERENCES = (
    [line for line in part.splitlines() if line.startswith("| ") and not line.startswith("| paper |")]
    for part in PAGE.split("## Where we differ, and why")
)
GRID = (14, 14)
IMAGENET = 1_281_167
CONFIGS = [
    getattr(recipe, verb)()
    for recipe in (base, dalle, nano, paper, release, small, tiny)
    for verb in ("train_tokenizer", "pretrain", "finetune")
    if hasattr(recipe, verb)
]
OTHER_VALUES = {"trunc2", "width", "timm", "auto", "rand-m9-mstd0.5-inc1"}
"""Of settings of ours that no recipe has, and of timm's."""
pytestmark = pytest.mark.docs


def resolve(name: str) -> Any:
    """What a dotted name below `smalti` stands for: a module, or something in one; None if it is nothing."""
    found, parts = importlib.import_module("smalti"), name.split(".")
    for place, part in enumerate(parts):
        try:
            found = importlib.import_module(f"smalti.{'.'.join(parts[: place + 1])}")
        except ModuleNotFoundError:
            found = getattr(found, part, None)  # type: ignore[assignment]
    return found


def functions(row: str) -> list[str]:
    """The dotted names of a row's second column; a short one is of the module, or the folder, of the one before."""
    names: list[str] = []
    for quoted in re.findall(r"`([^`]+)`", row.split(" | ")[1]):
        name = quoted.split("(")[0]
        for folders in ("", *(".".join(names[-1].split(".")[:depth]) for depth in range(1, 4) if names)):
            whole = f"{folders}.{name}".strip(".")
            if resolve(whole) is not None:
                name = whole
        names.append(name)
    return names


@pytest.mark.parametrize("row", EQUATIONS, ids=lambda row: row[2:40])
def test_every_function_of_the_first_table_exists(row: str) -> None:
    named = functions(row)
    assert named
    assert [name for name in named if resolve(name) is None] == []


@pytest.mark.parametrize("row", EQUATIONS, ids=lambda row: row[2:40])
def test_every_test_of_the_first_table_exists_and_tests_something(row: str) -> None:
    folder, named = ROOT / "tests", re.findall(r"`([^`]+)`", row.split(" | ")[2])
    for name in named:
        path = ROOT / name if "/" in name else folder / name
        folder = path.parent
        files = [path] if path.suffix else sorted(path.glob("test_*.py"))
        assert files, name
        assert all(re.search(r"^def test_", file.read_text(), re.MULTILINE) for file in files), name
    assert named or "the same" in row


def test_every_name_of_the_second_table_is_one_of_the_program() -> None:
    flags = {flag for config in CONFIGS for flag in flags_of(type(config), config)}
    flags |= {f"--task.{leaf.name.replace('_', '-')}" for leaf in leaves(Segmentation())}
    runs = {Pretrain, TrainTokenizer, Finetune}
    parts = runs.union(*map(parts_of, runs))
    names = {cls.__name__ for cls in parts} | {field.name for cls in parts for field in fields(cls)}
    names |= {str(leaf.value) for config in CONFIGS for leaf in leaves(config)} | OTHER_VALUES | set(recipe_names())
    quoted = re.findall(r"`([^`]+)`", "\n".join(DIFFERENCES))
    said = [re.split("[=( ]", text.removeprefix("smalti "))[0].strip('"') for text in quoted]
    known = flags | names | set(cli.VERBS)
    assert [name for name in said if name not in known and resolve(name) is None and not (ROOT / name).exists()] == []


def parts_of(config: type[Any]) -> set[type[Any]]:
    """All configurations that a configuration may hold, by the annotations of its fields."""
    found: set[type[Any]] = set()
    for annotation in typing.get_type_hints(config).values():
        for kind in typing.get_args(annotation) or (annotation,):
            if is_dataclass(kind) and isinstance(kind, type) and kind not in found:
                found |= {kind} | parts_of(kind)
    return found


def share_without_a_block(count: int, least: int = 16, tries: int = 10, cells: int = 1000) -> float:
    """How often the released code leaves a mask of `count` patches empty: in ten tries no block of so many fits.

    The mean over a fine grid of areas between `count` and `least`, and of logarithms of the aspect ratio.
    """
    middles = (np.arange(cells) + 0.5) / cells
    area, aspect = np.meshgrid(count + (least - count) * middles, np.exp((2 * middles - 1) * math.log(1 / 0.3)))
    tall, wide = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    return float((1 - (tall * wide <= count).mean()) ** tries)


def without_a_crop(width: int, tries: int = 10, cells: int = 1000) -> float:
    """How often ten crops do not fit into an image of this width and height 1, over all areas and aspect ratios."""
    crop, middles = RandomResizedCrop(), (np.arange(cells) + 0.5) / cells
    low, high = np.log(crop.ratio)
    share, aspect = np.meshgrid(crop.scale[0] + (1 - crop.scale[0]) * middles, np.exp(low + (high - low) * middles))
    area = width * share
    fits = (np.sqrt(area * aspect) <= width) & (np.sqrt(area / aspect) <= 1)
    return float((1 - fits.mean()) ** tries)


def spaced(number: int) -> str:
    """As 1 281 167."""
    return f"{number:,}".replace(",", " ")


def test_the_page_says_which_share_of_the_patches_is_masked() -> None:
    patches, default, chosen = GRID[0] * GRID[1], Blockwise().count(GRID), paper.pretrain().masking.count(GRID)
    assert f"{default} of {patches} ({100 * default / patches:.1f} %: 40 % in whole patches)" in PAGE
    assert f"{chosen} ({100 * chosen / patches:.1f} %) in `paper`" in PAGE
    printed = Algorithm1()(fold(0, np.arange(3000)), GRID).sum(1)
    assert f"{printed.min()} to {printed.max()} patches" in PAGE
    one, eight = share_without_a_block(1), share_without_a_block(8)
    assert f"{100 * one:.0f} % of masks of one patch and {100 * eight:.0f} % of masks of eight" in PAGE


def test_the_statistics_of_the_released_masks_are_counted() -> None:
    masks = Release(num_masked=75)(fold(0, np.arange(10_000)), GRID)
    place = masks.reshape(-1, *GRID).mean(0)
    corner, centre = place[[0, 0, -1, -1], [0, -1, 0, -1]].mean(), place[6:8, 6:8].mean()
    said = re.search(r"mean ([\d.]+), 75 in ([\d.]+) %, corner ([\d.]+), centre ([\d.]+)", PAGE)
    assert said is not None
    counted = (masks.sum(1).mean(), 100 * (masks.sum(1) == 75).mean(), corner, centre)
    for stated, found, tolerance in zip(map(float, said.groups()), counted, (0.05, 1.5, 0.005, 0.01), strict=True):
        assert stated == pytest.approx(found, abs=tolerance)
    said = re.search(r"a corner is masked (\d+) % of the time, the centre (\d+) %", PAGE)
    assert said is not None
    assert [float(number) for number in said.groups()] == pytest.approx([100 * corner, 100 * centre], abs=1)


def test_what_the_page_says_of_crops_is_counted() -> None:
    assert f"{100 * without_a_crop(4):.0f} % of crops at 4:1, {100 * without_a_crop(8):.0f} % at 8:1" in PAGE
    assert dalle.train_tokenizer().crop == SquareCrop(scaled=(9 / 8, 12 / 8))


def test_what_the_page_says_of_images_steps_and_epochs_is_computed() -> None:
    plan, held_out = paper.pretrain().plan, paper.pretrain().data.held_out
    rate = paper.pretrain().optimiser.lr_schedule(plan.steps)
    learnt, dropped = len(hold_out(IMAGENET, held_out, 0, _MAX_HELD_OUT)[0]), IMAGENET % plan.batch_size
    aside = IMAGENET - learnt
    assert release.pretrain().plan == plan
    for said in (
        f"all {spaced(IMAGENET)} images",
        f"{100 * held_out:.0f} %, at most {spaced(aside)} ({100 * aside / IMAGENET:.2f} % of ImageNet-1K)",
        f"{spaced(dropped)} images of ImageNet-1K, {100 * dropped / IMAGENET:.2f} %",
        f"{spaced(plan.steps)} steps are {plan.steps * plan.batch_size / learnt:.0f} epochs",
        f"in place of {plan.steps // (IMAGENET // plan.batch_size)}",
        f"{spaced(plan.steps)} in `paper` and `release`",
        f"{rate(1):.1e} in `paper` and `release`".replace("e-07", "e-7"),
        f"1.5e-3 at a batch of {plan.batch_size}, absolute",
    ):
        assert said in PAGE
    assert rate(rate.warmup) == 1.5e-3


def test_what_the_page_says_of_the_tokenizer_is_computed() -> None:
    config = dalle.train_tokenizer()
    steps, relaxation = config.plan.steps, config.relaxation
    with torch.device("meta"):
        network = DallE().build()
    encoder = [network.embed, network.encoder, network.to_logits]
    size = sum(weight.numel() for module in encoder for weight in module.parameters())
    for said in (
        f"{size / 1e6:.1f} M parameters",
        f"0 to {relaxation.beta} by a cosine over {spaced(relaxation.ramp(steps).steps)} of {steps // 10**6} M steps",
        f"1 to 1/16 by a cosine over {spaced(relaxation.annealing(steps).steps)} steps",
        f"{100 * relaxation.anneal_ratio:.0f} % of the steps",
        f"500 tokens of the training images a code, {MIN_DEFAULT_VOCAB} to {MAX_DEFAULT_VOCAB}",
    ):
        assert said in PAGE
    assert relaxation.temperature == (1, 1 / 16)
    assert isinstance(relaxation.ramp(steps), Cosine)
    assert default_vocab_size(1024, 500) == 1024
    assert TrainTokenizer().relaxation.anneal_ratio == 1 / 2
    for recipe in (nano, tiny, small, base):
        others = recipe.train_tokenizer().relaxation
        assert (others.beta, others.beta_ramp, others.spread) == (1, 1 / 5, 1)


def test_the_deviations_of_the_starts_are_drawn() -> None:
    """The released code's normal of 0.02, cut at ±0.02, has a deviation of 0.0108."""
    weight = torch.empty(1000, 1000)
    torch.nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02)
    assert f"so of {weight.std():.4f}" in PAGE
    assert math.log2(255 / 0.8) == pytest.approx(BITS_OF_8_BIT_PIXELS)
    assert "log2(255/0.8) bits" in PAGE


def test_the_learning_rates_of_the_released_code_are_computed() -> None:
    """As utils.py, cosine_scheduler, makes them: an array over all updates, that of the first at its front."""
    config = release.pretrain()
    ours, steps, peak, end = config.optimiser.lr_schedule(config.plan.steps), config.plan.steps, 1.5e-3, 1e-5
    warmup = 10 * (IMAGENET // config.plan.batch_size)
    left = np.arange(steps - warmup)
    after = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * left / len(left)))
    theirs = np.concatenate([np.linspace(0, peak, warmup), after])
    assert (warmup, ours.warmup) == (6250, 6250)
    assert f"of {spaced(warmup)} updates the i-th, counted from 0, has i/{warmup - 1} of the peak" in PAGE
    assert f"(i + 1)/{warmup} of it" in PAGE
    assert f"the last {theirs[-1]:.10e}".replace("e-05", "e-5") in PAGE
    assert (theirs[0], theirs[warmup - 1], theirs[warmup]) == (0, peak, peak)
    for update in (0, 1, 3000, warmup - 1):
        assert theirs[update] == pytest.approx(peak * update / (warmup - 1))
        assert ours(update + 1) == pytest.approx(peak * (update + 1) / warmup)
    for update in (warmup, warmup + 1, 100_000, steps - 2):
        assert ours(update + 1) == pytest.approx(theirs[update + 1], rel=1e-12)
    assert ours(steps) == end
