"""The script behind docs/vae-view.md: two short runs end in one JSON object with every number of the page."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "vae_view.py"


@pytest.mark.slow
def test_short_runs_end_in_one_json_object_with_all_figures() -> None:
    few = ["--tokenizer-steps", "2", "--steps", "2", "--limit", "200"]
    command = [sys.executable, str(BENCHMARK), "--json", *few]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result = json.loads(done.stdout)
    figures = runpy.run_path(str(BENCHMARK))["figures"](result)
    assert (result["steps"], result["train_images"], figures["ln V"]) == (2, 200, "6.238")
    assert 3 < result["png_bits_per_dim"] < 8
    assert float(figures["a masked patch, trained"]) < float(figures["a masked patch, untrained"]) + 0.1
