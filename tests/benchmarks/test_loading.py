"""The benchmarks of loading run, and what they compare is the same thing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.small_runs import flat_pictures

FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *arguments: str) -> dict[str, object]:
    command = [sys.executable, str(FOLDER / name), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_loader(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    result = run("loader.py", str(flat_pictures(tmp_path / "photos", 5)), "--batch-size", "3", "--steps", "2")
    assert {"ratio_vs_reference", "images_per_second_core", "ratio_pack", "ratio_pack_raw"} <= set(result)
    assert result["files"] == 5


def test_jitter(tmp_path: Path) -> None:
    result = run("jitter.py", str(flat_pictures(tmp_path / "photos", 3)), "--crops", "1")
    both = result["both: our default against the released code"]
    matrix = result["one matrix for three steps"]
    assert isinstance(both, dict)
    assert isinstance(matrix, dict)
    assert 0 < matrix["mean"] < 4
    assert 0 < both["mean"] < 15
