"""The study of street scenes: a cell is run once, from a backbone that is pretrained for it, and its page shows it."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from tests.benchmarks import in_process

ROOT = Path(__file__).parents[2]
STUDY, RESULTS = ROOT / "benchmarks" / "study_camvid.py", ROOT / "docs" / "results" / "camvid"


def streets(folder: Path, count: int) -> None:
    """Bands of all eleven classes and void, each of its own grey."""
    ids = np.arange(12, dtype=np.uint8).repeat(10)[:, None].repeat(160, 1)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 15, (120, 160, 3))
        Image.fromarray((20 * ids[..., None] + noise).astype(np.uint8)).save(folder / "images" / f"{number:02d}.jpg")
        Image.fromarray(ids).save(folder / "masks" / f"{number:02d}.png")


@pytest.mark.slow
def test_a_cell_is_run_once_from_a_backbone_that_is_pretrained_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, count in (("train", 70), ("val", 2), ("test", 2)):
        streets(tmp_path / "images" / part, count)
    call = [sys.executable, str(STUDY), "--camvid", str(tmp_path / "images"), "--steps", "1", "--json"]
    call += ["--cell", "linear-kmeans-20k-200", "--cell", "constant"]
    call += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results")]
    first = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    printed = [json.loads(said.splitlines()[-1]) for said in (first, in_process.run(call, monkeypatch, capsys))]
    assert printed[0] == printed[1]
    cell = printed[0]["linear-kmeans-20k-200"]
    assert cell == json.loads((tmp_path / "results" / "linear-kmeans-20k-200.json").read_text())
    assert (cell["result"]["steps"], cell["pretraining"]["steps"]) == (1, 1)
    assert "re-compressed as JPEG" in cell["images"]
    assert cell["config"]["freeze"]
    assert len(cell["result"]["test_class_iou"]) == 11
    assert printed[0]["constant"]["result"]["test_pixel_accuracy"] == pytest.approx(1 / 11)
    assert printed[0]["constant"]["result"]["test_mean_iou"] == pytest.approx(1 / 11 / 11)


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(STUDY.parent)
    return import_module("study_camvid")


@pytest.mark.docs
def test_the_table_of_the_page_is_that_of_its_files(study: ModuleType) -> None:
    page = (RESULTS / "README.md").read_text()
    shown = page.partition("<!-- table:begin -->\n")[2].partition("<!-- table:end -->")[0].strip()
    assert shown == study.table(study.COLUMNS, study.finished(RESULTS))


def test_a_start_and_random_weights_differ_in_the_weights_alone(study: ModuleType) -> None:
    for name, cell in study.cells().items():
        config = study.fine_tuning(cell, Path("data"), "init")
        scratch = study.fine_tuning(study.Cell("scratch", cell.head, cell.steps), Path("data"), "init")
        assert config == scratch, name
