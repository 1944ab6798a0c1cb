"""docs/vae-view.md has the numbers of its recorded run, and no others."""

import json
import re
import runpy
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smalti.evaluation.bound import describe
from smalti.flags import parse
from smalti.recipes import nano
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.train_tokenizer_config import TrainTokenizer

ROOT = Path(__file__).parents[1]
RECORDED: dict[str, Any] = json.loads((ROOT / "docs/results/vae-view/result.json").read_text())
PAGE = (ROOT / "docs/vae-view.md").read_text()
pytestmark = pytest.mark.docs


def test_the_table_is_that_of_the_recorded_run() -> None:
    assert describe(RECORDED["bound"]) in PAGE


def test_every_number_in_bold_is_one_of_the_run_and_the_other_way_round() -> None:
    figures = runpy.run_path(str(ROOT / "benchmarks/vae_view.py"))["figures"](RECORDED)
    told = PAGE.split("## A run")[1]
    assert set(re.findall(r"\*\*([^*]+)\*\*", told)) == set(figures.values())


def test_the_run_is_the_one_of_the_script() -> None:
    assert f"{RECORDED['tokenizer_steps']:,} steps".replace(",", " ") in PAGE
    assert f"{RECORDED['steps']:,} steps".replace(",", " ") in PAGE


def test_stage_two_is_worth_something() -> None:
    bound = RECORDED["bound"]
    bits = [bound[f"{name}_bound_grey_level_bits_per_dim"] for name in ("trained", "unigram", "untrained")]
    assert bits == sorted(bits)


def test_the_commands_of_the_page_are_the_run_of_the_script() -> None:
    """Masks, decoder and optimiser: BEiT as published, whatever `nano` has become."""
    script = runpy.run_path(str(ROOT / "benchmarks/vae_view.py"))["as_published"]()
    joined = PAGE.replace("\\\n", " ")
    first, second = re.findall(r"^smalti (?:train-tokenizer|pretrain) nano (.*)$", joined, re.MULTILINE)
    tokenizer = parse(TrainTokenizer, nano.train_tokenizer(), shlex.split(first), "train-tokenizer")
    typed = parse(Pretrain, nano.pretrain(), shlex.split(second), "pretrain")
    assert tokenizer.plan.steps == RECORDED["tokenizer_steps"]
    assert typed.plan.steps == RECORDED["steps"]
    assert typed == replace(script, data=typed.data, tokenizer=typed.tokenizer, out=typed.out)
    masked = script.masking(np.arange(3, dtype=np.uint64), script.backbone.grid).sum(1)
    assert set(masked.tolist()) == {RECORDED["bound"]["masked_patches"]}
