"""The benchmark of embed measures the command beside the bare forward pass."""

import json
import sys
from pathlib import Path

import pytest
from tests.benchmarks.in_process import run

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "embed.py"


def test_it_prints_the_ratio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    network = ["--width", "16", "--heads", "2", "--depth", "1", "--side", "32"]
    call = [sys.executable, str(SCRIPT), *network, "--images", "8", "--rounds", "1", "--precision", "fp32", "--json"]
    found = json.loads(run(call, monkeypatch, capsys).splitlines()[-1])
    assert set(found) == {"ratio", "ratio_later", "bare_images_per_second", "images_per_second"}
    assert found["images_per_second"] > 0
