"""Report sections of a fine-tuning run: loss, validation score, and the figures of its result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smalti.core.compute import Compute
from smalti.report.charts import curve
from smalti.report.page import Section, table
from smalti.runs.finetune import Finetune
from smalti.runs.folder import RunFolder, read_config
from smalti.runs.sections import series_of

_SCORES = {
    "accuracy": ("accuracy", "{:.1%}"),
    "top5": ("among the best five guesses", "{:.1%}"),
    "nats": ("cross-entropy, an image", "{:.3f} nats"),
    "mean_average_precision": ("mean average precision", "{:.1%}"),
    "mean_iou": ("mean IoU", "{:.1%}"),
    "pixel_accuracy": ("pixel accuracy", "{:.1%}"),
}


def finetune_sections(run: str, compute: Compute) -> list[Section]:
    """The loss, the validation scores, and the test scores of the selected weights."""
    config, folder = read_config(run, Finetune), RunFolder(Path(run).expanduser())
    score, charts = f"validation_{config.task.score}", ""
    if (loss := series_of(folder, "loss"))[0]:
        charts = curve({"training loss": loss}, xlabel="step", ylabel="nats")
    if (validation := series_of(folder, score))[0]:
        charts += curve({"validation": validation}, xlabel="step", ylabel=_SCORES[config.task.score][0])
    return [
        Section(
            "Fine-tuning on labels",
            charts + _scores(folder.read_result()) + table(["the run", ""], _facts(config, folder)),
            "A backbone and a head learn from labels. Validation images choose the weights; test images are looked at"
            " once, when that is done. The training loss is that of images as the run changes and mixes them.",
        )
    ]


def finetune_comparison(runs: Sequence[str]) -> Section:
    """Compare runs: a chart of the losses, a chart for each kind of validation score, and one table."""
    found = {Path(run).name: (read_config(run, Finetune), RunFolder(Path(run).expanduser())) for run in runs}
    losses = {name: line for name, (_, folder) in found.items() if (line := series_of(folder, "loss"))[0]}
    charts = curve(losses, xlabel="step", ylabel="training loss, nats") if losses else ""
    for score in dict.fromkeys(config.task.score for config, _ in found.values()):
        every = {name: series_of(folder, f"validation_{score}") for name, (_, folder) in found.items()}
        if lines := {name: line for name, line in every.items() if line[0]}:
            charts += curve(lines, xlabel="step", ylabel=f"validation: {_SCORES[score][0]}")
    columns = {name: dict(_facts(*one)) | _tested(one[1].read_result()) for name, one in found.items()}
    header = list(dict.fromkeys(heading for column in columns.values() for heading in column))
    rows = [[name, *(column.get(heading, "-") for heading in header)] for name, column in columns.items()]
    note = "Measured on each run's own validation and test images."
    return Section("Finetune: side by side", charts + table(["run", *header], rows), note)


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
    """Validation and test scores of the selected weights; empty if the run has not finished."""
    rows = [
        [text, *(_cell(result, f"{part}_{key}", form) for part in ("validation", "test"))]
        for key, (text, form) in _SCORES.items()
        if f"test_{key}" in result
    ]
    return table(["chosen weights", "validation", "test"], rows) if rows else ""


def _tested(result: Mapping[str, Any]) -> dict[str, str]:
    """The same scores as one table row, by heading."""
    return {
        f"{part}: {text}": _cell(result, f"{part}_{key}", form)
        for part in ("validation", "test")
        for key, (text, form) in _SCORES.items()
        if f"{part}_{key}" in result
    }


def _cell(result: Mapping[str, Any], key: str, form: str) -> str:
    return "-" if result.get(key) is None else form.format(result[key])
