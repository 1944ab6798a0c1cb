"""The study of tokenizers: a cell trains, is measured on images that it has not seen, and is not run twice."""

import json
import subprocess
import sys
from pathlib import Path

from tests.small_runs import pictures

STUDY = Path(__file__).parents[2] / "benchmarks" / "study_tokenizers.py"
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "tokenizers"


def test_a_cell_is_run_once_and_measured_on_the_test_images(tmp_path: Path) -> None:
    for part, count in (("train", 40), ("test", 4)):
        pictures(tmp_path / "images" / part, per_class=count)
    call = [sys.executable, str(STUDY), "--cifar10", str(tmp_path / "images"), "--cell", "vq-1024", "--json"]
    call += ["--minutes", "0.001", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results")]
    printed = []
    for _ in range(2):
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        printed.append(json.loads(done.stdout.splitlines()[-1]))
    assert printed[0] == printed[1]
    cell = printed[0]["vq-1024"]
    assert cell == json.loads((tmp_path / "results" / "vq-1024.json").read_text())
    assert cell["steps"] >= 1
    assert cell["test"]["window_tokens"] <= 8 * 64
    assert cell["gate"].split(":")[0] in ("passed", "refused")
    assert cell["config"]["data"]["path"] == "cifar10/train"
