"""The benchmark of masks: its peer draws what the released code draws, and its last line is one JSON object."""

import json
import random
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "masks.py"


def test_the_reference_has_the_statistics_of_the_released_code() -> None:
    """Mean 74.47, deviation 0.99, at most 75; centre masked 71.5 % of the time, a corner 4 %."""
    draw = random.Random(0)
    reference_mask = runpy.run_path(str(BENCHMARK))["reference_mask"]
    masks = np.array([reference_mask(draw) for _ in range(4000)])
    masked = masks.sum(axis=(1, 2))
    assert masked.mean() == pytest.approx(74.47, abs=0.08)
    assert masked.std() == pytest.approx(0.99, abs=0.12)
    assert masked.max() == 75
    assert masked.min() >= 60
    share = masks.mean(axis=0)
    assert share[6:8, 6:8].mean() == pytest.approx(0.715, abs=0.03)
    assert share[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(0.04, abs=0.015)


def test_json_is_one_object_on_the_last_line() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--json", "--rounds", "2"], capture_output=True, text=True, check=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert {"ratio_vs_reference", "microseconds_per_mask", "microseconds_per_sample"} <= figures.keys()
    variants = figures.pop("variants")
    assert list(variants) == ["exact", "rolled", "release", "algorithm1", "random"]
    assert all(value > 0 for value in figures.values())
    assert all(cost > 0 for costs in variants.values() for cost in (costs["at_once_4096"], costs["at_once_64"]))
