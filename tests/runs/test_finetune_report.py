"""`smalti report` of fine-tuning runs: curves, and every number that the page shows is that of result.json."""

import json
import re
from pathlib import Path

import pytest

from smalti.cli import main
from tests.small_runs import finetune, pictures, result, scenes, segment


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of classification, of which one has a share of the labels, and one of segmentation."""
    folder = tmp_path_factory.mktemp("report")
    photos, often = pictures(folder / "photos"), ("--plan.save-every", "2")
    assert finetune(photos, "", folder / "all", 4, *often) == 0
    assert finetune(photos, folder / "all", folder / "few", 4, "--label-share", "0.5", "--choose", "last") == 0
    assert segment(scenes(folder / "scenes"), "", folder / "pixels", 4, *often) == 0
    return folder


def page_of(*runs: Path, out: Path) -> str:
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    text = out.read_text()
    assert not re.findall(r"https?://|<script|(?:src|href)=[\"'](?!data:|#)", text)
    return text


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]


def percent(share: float) -> str:
    return f"{share:.1%}"


def test_a_run_of_classification(root: Path, tmp_path: Path) -> None:
    text, found = page_of(root / "all", out=tmp_path / "page.html"), result(root / "all")
    assert text.count('<figure class="chart"') == 2
    assert "side by side" not in text
    rows = rows_of(text)
    assert ["accuracy", percent(found["validation_accuracy"]), percent(found["test_accuracy"])] in rows
    assert ["cross-entropy, an image", f"{found['validation_nats']:.3f} nats", f"{found['test_nats']:.3f} nats"] in rows
    assert ["init", "drawn"] in rows
    assert ["labels", "100%"] in rows
    assert ["chosen step", f"{found['chosen_step']} of 4"] in rows
    for part in ("train", "validation", "test"):
        assert [f"{part} images", str(found[f"{part}_images"])] in rows


def test_a_run_of_segmentation(root: Path, tmp_path: Path) -> None:
    text, found = page_of(root / "pixels", out=tmp_path / "page.html"), result(root / "pixels")
    assert text.count('<figure class="chart"') == 2
    rows = rows_of(text)
    assert ["mean IoU", percent(found["validation_mean_iou"]), percent(found["test_mean_iou"])] in rows
    assert ["pixel accuracy", *(percent(found[f"{p}_pixel_accuracy"]) for p in ("validation", "test"))] in rows
    assert "cross-entropy" not in text


def test_several_runs_side_by_side(root: Path, tmp_path: Path) -> None:
    runs = [root / name for name in ("all", "few", "pixels")]
    text = page_of(*runs, out=tmp_path / "page.html")
    together = text[text.rindex("Finetune: side by side") :]
    together = together[: together.index("Fine-tuning on labels")]
    assert together.count('<figure class="chart"') == 3, "losses, and a chart for each score"
    header, *rows = rows_of(together)
    of = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert of.keys() == {"all", "few", "pixels"}
    assert of["few"]["labels"] == "50%"
    assert of["few"]["init"] == str(root / "all")
    assert of["few"]["test: accuracy"] == percent(result(root / "few")["test_accuracy"])
    assert of["few"]["test: mean IoU"] == "-"
    assert of["pixels"]["test: mean IoU"] == percent(result(root / "pixels")["test_mean_iou"])


def test_a_run_that_has_not_finished_and_one_without_a_line(root: Path, tmp_path: Path) -> None:
    for name in ("begun", "bare"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes((root / "all" / "config.json").read_bytes())
    lines = [
        {"stage": "finetune", "step": 1, "loss": 0.5},
        {"stage": "validation", "step": 1, "validation_accuracy": 1.0},
    ]
    (tmp_path / "begun" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page_of(tmp_path / "begun", tmp_path / "bare", out=tmp_path / "page.html")
    assert text.count('<figure class="chart"') == 4, "two of the run, and the same two in the comparison"
    assert "chosen step" not in text
