"""What the finished cells of a study say: the table, the best row, the summary, the plots, the page."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plots import Lines, log_lines
from printing import markdown, put_table
from study import SEEDS, Cells, Study

_SCRATCH = "random"
"""The row without pretraining."""

COLUMNS = {
    "k-NN": "knn",
    "linear": "linear",
    "linear, 5 a class": "linear_5_a_class",
    "linear, 10 a class": "linear_10_a_class",
    "1 % of labels": "finetune_1pct",
    "10 %": "finetune_10pct",
    "100 %": "finetune_100pct",
}


@dataclass(frozen=True)
class Results:
    """The finished cells of a study, by row and name."""

    study: Study
    finished: Mapping[str, Cells]

    @classmethod
    def read(cls, study: Study, home: Path) -> "Results":
        """Those that have a file, of every row that has some."""
        found = {
            name: {path.stem: json.loads(path.read_text()) for path in sorted((home / name).glob("*.json"))}
            for name in study.rows
        }
        return cls(study, {name: row for name, row in found.items() if row})

    @property
    def grid(self) -> list[str]:
        """Rows among which the best is chosen: those that are compared, as far as they are measured."""
        return [name for name, row in self.study.rows.items() if row.target and row.compared and self._probed(name)]

    def _probed(self, name: str) -> bool:
        return "probe" in self.finished.get(name, {})

    def chosen(self) -> str:
        """The best pretraining of the grid, by the linear probe on validation images."""

        def validated(name: str) -> float:
            return sum(max(probe["validation"].values()) for probe in self.finished[name]["probe"]["seeds"].values())

        return max(self.grid, key=validated)

    def summary(self) -> dict[str, Any]:
        """The best row beside the network that was never pretrained, and the row that saw the most images."""
        best = self.chosen()
        seen = {name: row.images for name, row in self.study.rows.items() if row.target and self._probed(name)}
        longest = max(seen, key=lambda name: (seen[name], name == best))
        rows = {"best": best, "scratch": _SCRATCH, "longest": longest}
        return {role: {"row": name, **figures(self.finished[name])} for role, name in rows.items()}

    def table(self) -> str:
        """All rows as Markdown, in per cent; a dash where there is no finished cell."""
        rows = list[list[str]]()
        for name, row in self.study.rows.items():
            found = figures(self.finished.get(name, {}))
            images = f"{row.images:,}" if row.target else "0"
            rows.append([name, images, *(f"{100 * found[k]:.1f}" if k in found else "-" for k in COLUMNS.values())])
        return markdown(["", "images", *COLUMNS], rows)

    def write(self, home: Path) -> None:
        """Bring the page up to date, where there is one, and summary and plots, where there is something to compare."""
        put_table(home / "README.md", self.table())
        if _SCRATCH in self.finished and self.grid:
            (home / "summary.json").write_text(json.dumps(self.summary(), indent=1) + "\n")
        for name, plot in self.plots().items():
            (home / name).write_text(plot)

    def plots(self) -> dict[str, str]:
        """SVG by file name: fine-tuning by labels, and the learning curve; those that have lines of two points."""
        drawn = {
            "labels.svg": (self.by_labels(), "labels, % of those of train/", "fine-tuned"),
            "images.svg": (self.by_images(), "images seen in pretraining", self.study.curve),
        }
        return {
            file: log_lines(lines, xlabel, f"{what}: accuracy on test images, %", beside=_SCRATCH)
            for file, (lines, xlabel, what) in drawn.items()
            if lines
        }

    def by_labels(self) -> Lines:
        """Accuracy in per cent by the percentage of labels, of rows that have two such points or more."""
        found = {name: figures(row) for name, row in self.finished.items()}
        return _lines(
            {name: {share: row.get(f"finetune_{share}pct") for share in (1, 10, 100)} for name, row in found.items()}
        )

    def by_images(self) -> Lines:
        """Accuracy in per cent by images of pretraining, for each way to measure the rows of the learning curve."""
        if not self.study.curve:
            return {}
        rows = self.study.rows
        of = replace(rows[self.study.curve], images=0)
        found: dict[float, dict[str, float]] = {
            rows[name].images: figures(cells)
            for name, cells in self.finished.items()
            if replace(rows[name], images=0) == of
        }
        kinds = {"k-NN": "knn", "linear": "linear", "10 % of labels": "finetune_10pct"}
        return _lines({name: {images: row.get(kind) for images, row in found.items()} for name, kind in kinds.items()})


def _lines(shares: Mapping[str, Mapping[float, float | None]]) -> Lines:
    """In per cent, without what is not measured; only lines of two points or more."""
    found = {name: {x: 100 * y for x, y in line.items() if y is not None} for name, line in shares.items()}
    return {name: line for name, line in found.items() if len(line) > 1}


def figures(row: Cells) -> dict[str, float]:
    """What a row is worth on test images: means over seeds where there are several."""
    probes = list(row.get("probe", {}).get("seeds", {}).values())
    found = {kind: [probe[kind] for probe in probes] for kind in ("knn", "linear")}
    for each in (5, 10):
        few = [probe["few"].get(f"{each} a class") for probe in probes]
        found[f"linear_{each}_a_class"] = [budget["accuracy"] for budget in few if budget]
    for percent in (1, 10, 100):
        cells = [row[f"finetune-{percent}pct-{seed}"] for seed in SEEDS if f"finetune-{percent}pct-{seed}" in row]
        found[f"finetune_{percent}pct"] = [cell["test_accuracy"] for cell in cells]
    return {kind: sum(values) / len(values) for kind, values in found.items() if values}
