"""The benchmark of the tokenizer: same weights on both sides, and its last line is one JSON object."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "tokenizer.py"


def test_json_is_one_object_on_the_last_line() -> None:
    pytest.importorskip("dall_e")
    shape = ["--batch", "1", "--side", "32", "--width", "8", "--vocab-size", "16"]
    small = ["--json", "--rounds", "1", "--precision", "fp32", *shape]
    done = subprocess.run([sys.executable, str(BENCHMARK), *small], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["encode_ratio_vs_fp32_eager"] > 0
    assert figures["equal_tokens"] == 1
    assert figures["precision"] == "float32"
