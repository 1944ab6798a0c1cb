"""Report sections of a fine-tuning run: loss, validation score, the figures of its result, and test images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smalti.core.compute import Compute
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset
from smalti.report.charts import curve
from smalti.report.page import Section, table
from smalti.runs.feature_sections import confusion_table
from smalti.runs.figures import SCORES
from smalti.runs.finetune import Finetune
from smalti.runs.folder import RunFolder, read_config
from smalti.runs.models import load_finetuned
from smalti.runs.sections import pictures_of, series_of, side_by_side

_PAIRS = 10


def finetune_sections(run: str, compute: Compute) -> list[Section]:
    """The loss, the validation scores, and the test scores of the selected weights."""
    config, folder = read_config(run, Finetune), RunFolder(Path(run).expanduser())
    score, charts = f"validation_{config.task.score}", ""
    if (loss := series_of(folder, "loss"))[0]:
        charts = curve({"training loss": loss}, xlabel="step", ylabel="nats")
    if (validation := series_of(folder, score))[0]:
        charts += curve({"validation": validation}, xlabel="step", ylabel=SCORES[config.task.score].text)
    return [
        Section(
            "Fine-tuning on labels",
            charts + _scores(folder.read_result()) + table(["the run", "value"], _facts(config, folder)),
            "A backbone and a head learn from labels. Validation images choose the weights; test images are looked at"
            " once, when that is done. The training loss is that of images as the run changes and mixes them.",
        ),
        *_confusions(folder),
        *(pictures_of(run, lambda: _pictures(run, config, folder, compute)) if folder.read_result() else []),
    ]


def _confusions(folder: RunFolder) -> list[Section]:
    """Which classes the test images are taken for most often; none where there are too many classes for a table."""
    counts, classes = folder.read_result().get("test_confusion"), folder.read_classes()
    if not counts or len(classes) != len(counts):
        return []
    pairs = [(true, said, n) for true, row in enumerate(counts) for said, n in enumerate(row) if n and true != said]
    most = sorted(pairs, key=lambda one: (-one[2], one[:2]))[:_PAIRS]
    html = confusion_table(most, [sum(row) for row in counts], classes, "is taken for")
    return [Section("What is taken for what", html, "The most frequent mistakes on test images.")] if html else []


def _pictures(run: str, config: Finetune, folder: RunFolder, compute: Compute) -> list[Section]:
    """Test images and what the network says of them."""
    log, outputs = Log(), folder.read_classes()
    if config.test:
        images: ImageDataset = config.task.read(config.test, config.data, outputs, log)
    else:
        images = config.split_images(config.task.open(config.data, log, None), log).test
    size, channels = config.backbone.img_size, config.data.show_channels
    return [config.task.pictures(load_finetuned(run, compute), images, outputs, size, compute, channels)]


def finetune_comparison(runs: Sequence[str]) -> Section:
    """Compare runs: a chart of the losses, a chart for each kind of validation score, and one table."""
    scores = {
        f"{part}_{key}": one._replace(text=f"{part}: {one.text}")
        for key, one in SCORES.items()
        for part in ("test", "validation")
    }
    chosen = dict.fromkeys(f"validation_{read_config(run, Finetune).task.score}" for run in runs)
    curves = {"loss": "training loss, nats"} | {key: scores[key].text for key in chosen}
    note = "Measured on each run's own validation and test images; the best of each score is bold, and so"
    note += " are settings that differ from those of most runs, or of the first of two."
    return side_by_side(Finetune.__name__, runs, scores, curves, note, lambda *run: dict(_facts(*run)))


def _facts(config: Finetune, folder: RunFolder) -> list[tuple[str, str]]:
    """The initial weights, the amount of training, and the selected weights."""
    result = folder.read_result()
    few = f"{config.labels_per_class} a class" if config.labels_per_class else f"{config.label_share:.0%}"
    facts = [("init", config.init or "drawn"), ("labels", few)]
    if not result:
        return facts
    images = ((f"{part} images", str(result[f"{part}_images"])) for part in ("train", "validation", "test"))
    return [*facts, *images, ("chosen step", f"{result['chosen_step']} of {result['steps']}")]


def _scores(result: Mapping[str, Any]) -> str:
    """Test and validation scores of the selected weights; empty if the run has not finished."""
    rows = [
        [one.text, *(one.cell(result.get(f"{part}_{key}")) for part in ("test", "validation"))]
        for key, one in SCORES.items()
        if f"test_{key}" in result
    ]
    return table(["chosen weights", "test", "validation"], rows) if rows else ""
