"""docs/vae-view.md has the numbers of its recorded run, and no others."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from smalti.evaluation.bound import describe

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
