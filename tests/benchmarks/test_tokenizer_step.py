"""The benchmark of a tokenizer's training step: its last line is one JSON object."""

import json
import sys
from pathlib import Path

import pytest
from tests.benchmarks import in_process

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "tokenizer_step.py"


def test_json_is_one_object_on_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--json", "--rounds", "1", "--precision", "fp32", "--batch", "2", "--side", "32", "--width", "8"]
    call = [sys.executable, str(BENCHMARK), *small, "--vocab-size", "64", "--no-share"]
    figures = json.loads(in_process.run(call, monkeypatch, capsys).splitlines()[-1])
    assert figures["step_ratio_vs_fp32_eager"] > 0
    assert figures["scores_bytes"] == 2 * 64 * 4 * 4 * 4
    assert figures["precision"] == "float32"
