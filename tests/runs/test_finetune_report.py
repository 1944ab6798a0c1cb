"""`smalti report` of fine-tuning runs: curves, and every number that the page shows is that of result.json."""

import json
import re
import shutil
from pathlib import Path

import pytest

from smalti.cli import main
from smalti.runs.evaluation_sections import evaluation_sections
from smalti.runs.evaluations import write_evaluation
from smalti.runs.folder import RunFolder
from tests.report.reading import inert
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
    assert not re.findall(r"https?://|<script|(?:src|href)=[\"'](?!data:|#)", inert(text))
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
    assert ["chosen weights", "test", "validation"] in rows
    assert ["accuracy", percent(found["test_accuracy"]), percent(found["validation_accuracy"])] in rows
    assert ["cross-entropy, an image", f"{found['test_nats']:.3f} nats", f"{found['validation_nats']:.3f} nats"] in rows
    assert ["init", "drawn"] in rows
    assert ["labels", "100%"] in rows
    assert ["chosen step", f"{found['chosen_step']} of 4"] in rows
    for part in ("train", "validation", "test"):
        assert [f"{part} images", str(found[f"{part}_images"])] in rows


def test_the_most_frequent_mistakes_are_named(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(root / "all", folder)
    (folder / "result.json").write_text(json.dumps(result(folder) | {"test_confusion": [[6, 2], [3, 1]]}))
    rows = rows_of(page_of(folder, out=tmp_path / "page.html"))
    start = rows.index(["an image of", "is taken for", "images", "of its class"])
    assert rows[start + 1 : start + 3] == [["down", "across", "3", "75%"], ["across", "down", "2", "25%"]]


def test_a_run_of_segmentation(root: Path, tmp_path: Path) -> None:
    text, found = page_of(root / "pixels", out=tmp_path / "page.html"), result(root / "pixels")
    assert text.count('<figure class="chart"') == 2
    rows = rows_of(text)
    assert ["mean IoU", percent(found["test_mean_iou"]), percent(found["validation_mean_iou"])] in rows
    assert ["pixel accuracy", *(percent(found[f"{p}_pixel_accuracy"]) for p in ("test", "validation"))] in rows
    assert "cross-entropy" not in text


def test_several_runs_side_by_side(root: Path, tmp_path: Path) -> None:
    runs = [root / name for name in ("all", "few", "pixels")]
    text = page_of(*runs, out=tmp_path / "page.html")
    together = text[text.rindex("Finetune: side by side") :]
    together = together[: together.index("Fine-tuning on labels")]
    assert together.count('<figure class="chart"') == 3, "losses, and a chart for each score"
    tables = [rows_of(part) for part in re.findall(r"<table>.*?</table>", together, re.DOTALL)]
    assert all(len(header) <= 7 for header, *_ in tables), "what is wider is continued below"
    differing = tables.pop()
    assert differing[0] == ["what differs", "all", "few", "pixels"]
    assert ["label_share", "1", "<strong>0.5</strong>", "1"] in differing
    assert {"out", "seed"}.isdisjoint(row[0] for row in differing)
    assert tables[0][0][:3] == ["run", "test: accuracy", "validation: accuracy"]
    plain = re.compile(r"</?strong>")
    of: dict[str, dict[str, str]] = {}
    for header, *rows in tables:
        for row in rows:
            of.setdefault(row[0], {}).update(zip(header, (plain.sub("", cell) for cell in row), strict=True))
    assert of.keys() == {"all", "few", "pixels"}
    assert of["few"]["labels"] == "50%"
    assert of["few"]["init"] == str(root / "all")
    assert of["few"]["test: accuracy"] == percent(result(root / "few")["test_accuracy"])
    assert of["few"]["test: mean IoU"] == "-"
    assert of["pixels"]["test: mean IoU"] == percent(result(root / "pixels")["test_mean_iou"])


def test_runs_of_one_name_have_a_row_each(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "few", tmp_path / "other" / "all")
    runs = (root / "all", tmp_path / "other" / "all")
    together = page_of(*runs, out=tmp_path / "page.html").partition("Finetune: side by side")[2]
    assert [row[0] for row in rows_of(together) if row[0] in map(str, runs)][:2] == list(map(str, runs))


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


def test_the_header_says_what_came_out_and_what_a_guess_would_give(root: Path, tmp_path: Path) -> None:
    text, found = page_of(root / "all", out=tmp_path / "page.html"), result(root / "all")
    tiles = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    often = max(map(sum, found["test_confusion"])) / found["test_images"]
    assert tiles == {
        "images learned from": str(found["train_images"]),
        "test accuracy": percent(found["test_accuracy"]),
        "validation accuracy": percent(found["validation_accuracy"]),
        "classes": "2",
        "most frequent class": percent(often),
    }
    assert f"{percent(found['test_accuracy'])} accuracy on {found['test_images']} test images" in text
    assert f"the most frequent class of every image would give {percent(often)}." in text


def test_the_contents_name_the_runs_and_the_best_cell_is_bold_whichever_run_it_is_of(
    root: Path, tmp_path: Path
) -> None:
    for name, accuracy in (("a", 0.25), ("b", 0.75), ("c", 0.5)):
        (tmp_path / name).mkdir()
        for part in ("config.json", "classes.json"):
            (tmp_path / name / part).write_bytes((root / "all" / part).read_bytes())
        changed = result(root / "all") | {"test_accuracy": accuracy, "test_nats": 1 - accuracy}
        (tmp_path / name / "result.json").write_text(json.dumps(changed))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["config"]["data"]["path"] = str(tmp_path / "gone")
    for name in "abc":
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    text = page_of(*(tmp_path / name for name in "abc"), out=tmp_path / "page.html")
    contents = text[text.index("<nav") : text.index("</nav>")]
    assert re.findall(r"<b>(.*?)</b>", contents) == ["a", "b", "c"]
    assert re.findall(r'<p class="run">(.*?)</p>', text) == [*"aabbcc"], "of each its numbers, and its mistakes"
    bold = [(row[0], cell) for row in rows_of(text) for cell in row[1:] if "<strong>" in cell]
    assert ("b", "<strong>75.0%</strong>") in bold
    assert ("b", "<strong>0.250 nats</strong>") in bold
    assert not [cell for name, cell in bold if name != "b" and ("75.0%" in cell or "0.250" in cell)]
    assert "The best accuracy of 3 finished runs: b." in text


def test_pictures_are_of_every_class_with_what_is_said_and_what_is_true(root: Path, tmp_path: Path) -> None:
    text = page_of(root / "all", out=tmp_path / "page.html")
    captions = re.findall(r"<p>(\w+) \d+% \(true: (\w+)\)</p>", text)
    assert len(captions) == min(12, result(root / "all")["test_images"])
    assert {true for _, true in captions} == {"across", "down"}


def test_segmentation_has_outlines_and_the_iou_of_each_image(root: Path, tmp_path: Path) -> None:
    text, found = page_of(root / "pixels", out=tmp_path / "page.html"), result(root / "pixels")
    assert len(re.findall(r"<p>\d\d\.png: mean IoU \d+%</p>", text)) == found["test_images"]
    assert 'alt="truth, ' in text
    assert "0: no outline." in text


def test_what_was_measured_later_is_called_as_at_the_end_of_the_run(tmp_path: Path) -> None:
    write_evaluation(tmp_path, "/photos", "", {"kind": "Pretrain", "result": {"accuracy": 0.25}})
    [section] = evaluation_sections(RunFolder(tmp_path))
    assert rows_of(section.html) == [["on these images", "value"], ["masked tokens guessed right", "25.0%"]]


def test_what_evaluate_has_kept_is_shown(root: Path, tmp_path: Path) -> None:
    probes = {"linear": 0.5, "knn": 0.25, "few": {"10 %": {"accuracy": 0.125}}, "layer": 2, "pooling": "mean"}
    beside = {"raw pixels": probes | {"linear": 0.75}}
    kept = {"data": "/photos", "test": "/test", "step": 4, "result": probes | {"baselines": beside}}
    folder = RunFolder(root / "all")
    write_evaluation(folder.path, "/photos", "/test", kept)
    text = page_of(root / "all", out=tmp_path / "page.html")
    assert "Evaluated on photos" in text
    assert "on /photos, tested on /test, after step 4 of training." in text
    assert ["this network", "25.0%", "50.0%", "12.5%", "2 (mean)"] in [
        [re.sub("</?strong>", "", cell) for cell in row] for row in rows_of(text)
    ]
    assert "<strong>75.0%</strong>" in text
