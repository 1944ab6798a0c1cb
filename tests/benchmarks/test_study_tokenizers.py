"""The study of tokenizers: a cell trains, is measured on images that it has not seen, and is not run twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.benchmarks import in_process
from tests.small_runs import pictures

STUDY = Path(__file__).parents[2] / "benchmarks" / "study_tokenizers.py"
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "tokenizers"


def command(folder: Path, *options: str) -> list[str]:
    """The cell vq-1024 on the images in `folder`, which keeps what comes of it."""
    call = [sys.executable, str(STUDY), "--cifar10", str(folder / "images"), "--cell", "vq-1024", "--json"]
    return [*call, "--runs", str(folder / "runs"), "--out", str(folder / "results"), *options]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 40), ("test", 4)):
        pictures(tmp_path / "images" / part, per_class=count)
    return tmp_path


def test_a_cell_takes_as_many_steps_as_it_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = in_process.run(command(folder, "--steps", "3"), monkeypatch, capsys)
    assert json.loads(said.splitlines()[-1])["vq-1024"]["steps"] == 3


@pytest.mark.slow
def test_a_cell_is_run_once_and_measured_on_the_test_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = command(folder, "--minutes", "0.001")
    first = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    printed = [json.loads(said.splitlines()[-1]) for said in (first, in_process.run(call, monkeypatch, capsys))]
    assert printed[0] == printed[1]
    cell = printed[0]["vq-1024"]
    assert cell == json.loads((folder / "results" / "vq-1024.json").read_text())
    assert cell["steps"] >= 1
    assert cell["test"]["window_tokens"] <= 8 * 64
    assert cell["gate"].split(":")[0] in ("passed", "refused")
    assert cell["config"]["data"]["path"] == "cifar10/train"
