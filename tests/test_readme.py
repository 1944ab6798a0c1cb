"""The README's figures are those of a recorded run, and no others."""

import json
from pathlib import Path

import pytest

from smalti.runs.demo import describe

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.docs


def test_the_demo_in_the_readme_is_the_recorded_one() -> None:
    recorded = json.loads((ROOT / "docs/results/demo/result.json").read_text())
    assert describe(recorded).strip() in (ROOT / "README.md").read_text()
    assert f"{recorded['seconds']:.0f} s by the clock" in (ROOT / "README.md").read_text()


def test_the_recorded_demo_reached_what_it_should() -> None:
    recorded = json.loads((ROOT / "docs/results/demo/result.json").read_text())
    assert recorded["probe"]["gain_points"] >= 8
    assert recorded["tokenizer"]["codebook_usage"] >= 0.5
    assert recorded["mim"]["unigram_entropy_nats"] - recorded["mim"]["loss_nats"] >= 0.7
