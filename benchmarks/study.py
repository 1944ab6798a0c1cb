"""What the studies of pretraining share: rows, their cells, going on where one was cut off, the table and the page.

A study is a file of its own (study_cifar10.py, study_grocery.py) with its images, its network and its rows.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from logs import write_log
from plots import Lines, log_lines

from smalti.core.compute import Compute, choose_compute
from smalti.core.config import to_json
from smalti.core.log import Log
from smalti.data.load import Data, read_source
from smalti.data.mixing import Mixing
from smalti.data.open import open_stored
from smalti.data.views import NO_JITTER, RandomResizedCrop
from smalti.evaluation.battery import Battery
from smalti.functional.masking import Blockwise, Random
from smalti.models.vit import ViT
from smalti.runs.classification import Classification
from smalti.runs.evaluate import batteries
from smalti.runs.finetune import Finetune
from smalti.runs.finetune import main as finetune
from smalti.runs.folder import RunFolder, is_run, read_config
from smalti.runs.pretrain import Pretrain, load_model
from smalti.runs.pretrain import main as pretrain
from smalti.training.optim import AdamW
from smalti.training.plan import Plan
from smalti.training.targets import Pixels, Tokens

RESULTS = Path(__file__).parent.parent / "docs" / "results"
IMAGES = 300_000
SEEDS = (0, 1, 2)
_BATCH = 128
_BEGIN, _END = "<!-- table:begin -->\n", "<!-- table:end -->"


@dataclass(frozen=True)
class Row:
    """A way of pretraining: what is predicted, and where. Without a target there is none.

    Attributes:
        layer_decay: of fine-tuning.
    """

    target: Tokens | Pixels | None = None
    masking: Blockwise | Random = Blockwise(ratio=0.4)
    tokenizer: str = ""
    images: int = IMAGES
    layer_decay: float = 0.8


class Places(NamedTuple):
    """Where things are."""

    images: Path
    tokenizers: Path
    runs: Path


Cell: TypeAlias = Callable[[Compute], dict[str, Any]]
Cells: TypeAlias = Mapping[str, dict[str, Any]]
"""The finished cells of a row: what is in their files."""


@dataclass(frozen=True)
class Study:
    """Rows that are measured in the same way on the images of one data set.

    Attributes:
        name: of the data set, its option, and the folder of its results.
        backbone: of all rows. Images are kept in memory in the size that it sees.
        validation: the folder beside train/ on which fine-tuning makes its choices; empty: what is held out of train/.
        curve: the row whose learning curve is measured, by rows that differ from it in the number of images.
        few_steps: of fine-tuning with 1 % of the labels.
        steps: with more.
    """

    name: str
    rows: Mapping[str, Row]
    backbone: ViT
    validation: str = ""
    curve: str = ""
    few_steps: int = 500
    steps: int = 2000
    protocol: Battery = Battery(poolings=("cls", "mean", "both", "2x2"))

    @property
    def home(self) -> Path:
        """Where the results are kept, and the page about them."""
        return RESULTS / self.name

    def data(self, places: Places) -> Data:
        """Training images; a twentieth is held out, for the loss of pretraining and, without others, for choices."""
        return Data(path=str(places.images / "train"), channels=3, side=self.backbone.img_size[0])

    def pretraining(self, row: Row, out: Path, places: Places) -> Pretrain:
        """The pretraining of a row."""
        assert row.target is not None
        return Pretrain(
            data=self.data(places),
            tokenizer=str(places.tokenizers / row.tokenizer) if row.tokenizer else "",
            out=str(out),
            backbone=self.backbone,
            masking=row.masking,
            target=row.target,
            crop=RandomResizedCrop(scale=(0.4, 1.0)),
            jitter=NO_JITTER,
            optimiser=AdamW(lr=2e-3, warmup_ratio=0.08, betas=(0.9, 0.98)),
            plan=Plan(steps=-(-row.images // _BATCH), batch_size=_BATCH, log_every=50, save_every=250),
        )

    def finetuning(
        self, init: str, out: Path, places: Places, *, share: float, seed: int, layer_decay: float
    ) -> Finetune:
        """Fine-tuning with a share of the labels, from a pretraining or from nothing."""
        steps = self.few_steps if share == 0.01 else self.steps
        return Finetune(
            data=self.data(places),
            test=str(places.images / "test"),
            validation_data=str(places.images / self.validation) if self.validation else "",
            init=init,
            out=str(out),
            task=Classification(mixing=Mixing(mixup=0.8, cutmix=1.0)),
            backbone=replace(self.backbone, drop_path_rate=0.1),
            crop=RandomResizedCrop(scale=(0.4, 1.0)),
            jitter=NO_JITTER,
            label_share=share,
            optimiser=AdamW(lr=1e-3, end_lr=1e-6, warmup_ratio=0.1, layer_decay=layer_decay),
            plan=Plan(steps=steps, batch_size=_BATCH, repeat=True, log_every=50, save_every=250),
            seed=seed,
        )

    def cells(self, name: str, places: Places) -> dict[str, Cell]:
        """The cells of a row, in the order in which they can be done."""
        row = self.rows[name]
        found: dict[str, Cell] = {}
        if row.target is not None:
            found["pretrain"] = partial(self._pretrain, name, places)
        if row.layer_decay < 1:
            found["probe"] = partial(self._probe, name, places)
        grid = [(10, 0), (1, 0), (1, 1), (1, 2), (100, 0)]
        for percent, seed in grid if row.images == IMAGES and row.layer_decay < 1 else grid[:1]:
            found[f"finetune-{percent}pct-{seed}"] = partial(self._finetune, name, percent, seed, places)
        return found

    def _pretrain(self, name: str, places: Places, compute: Compute) -> dict[str, Any]:
        def configured(places: Places) -> Pretrain:
            return self.pretraining(self.rows[name], places.runs / name / "pretrain", places)

        return self._go_on(configured, pretrain, places, compute)

    def _pretrained(self, name: str, places: Places) -> str:
        """The run folder of a row's pretraining; empty where there is none."""
        return str(places.runs / name / "pretrain") if self.rows[name].target else ""

    def _finetune(self, name: str, percent: int, seed: int, places: Places, compute: Compute) -> dict[str, Any]:
        def configured(places: Places) -> Finetune:
            init, out = self._pretrained(name, places), places.runs / name / f"finetune-{percent}pct-{seed}"
            layer_decay = self.rows[name].layer_decay
            return self.finetuning(init, out, places, share=percent / 100, seed=seed, layer_decay=layer_decay)

        return self._go_on(configured, finetune, places, compute)

    def _go_on(
        self, configured: Callable[[Places], Any], main: Callable[..., dict[str, Any]], places: Places, compute: Compute
    ) -> dict[str, Any]:
        """Begin a run, or go on with it: its result and its configuration, with names for where things are."""
        config = configured(places)
        resume = is_run(config.out)
        if resume:
            config = replace(read_config(config.out, type(config)), out=config.out)
        shown = configured(Places(Path(self.name), Path("tokenizers"), Path("runs")))
        return main(config, resume=resume, compute=compute) | {"resumed": resume, "config": to_json(shown)}

    def _probe(self, name: str, places: Places, compute: Compute) -> dict[str, Any]:
        """The battery on all images of train/ and test/: three seeds of validation images and few labels.

        Without pretraining the network is a random one, another for each seed.
        """
        run = self._pretrained(name, places)
        data = self.data(places)
        train, test = (
            read_source(open_stored(str(places.images / part), 3), data, Log()) for part in ("train", "test")
        )
        if run:
            found = batteries(load_model(run, compute).backbone, train, test, compute, SEEDS, self.protocol)
            return {"seeds": {str(result.seed): result.as_dict() for result in found}}
        networks = {seed: self.backbone.build(seed).eval().to(compute.device) for seed in SEEDS}
        each = [next(batteries(network, train, test, compute, [s], self.protocol)) for s, network in networks.items()]
        return {"seeds": {str(result.seed): result.as_dict() for result in each}}

    def read(self, home: Path) -> dict[str, dict[str, Any]]:
        """The finished cells of every row that has some."""
        found = {
            name: {path.stem: json.loads(path.read_text()) for path in sorted((home / name).glob("*.json"))}
            for name in self.rows
        }
        return {name: row for name, row in found.items() if row}

    def grid(self, finished: Mapping[str, Cells]) -> list[str]:
        """Rows among which the best is chosen: those of as many images as all have, as far as they are measured."""
        rows = {name: row for name, row in self.rows.items() if row.target and row.images == IMAGES}
        return [name for name in rows if "probe" in finished.get(name, {})]

    def chosen(self, finished: Mapping[str, Cells]) -> str:
        """The best pretraining of the grid, by the linear probe on validation images."""

        def validated(name: str) -> float:
            return sum(max(probe["validation"].values()) for probe in finished[name]["probe"]["seeds"].values())

        return max(self.grid(finished), key=validated)

    def summary(self, finished: Mapping[str, Cells]) -> dict[str, Any]:
        """The best row beside the network that was never pretrained."""
        best, scratch = self.chosen(finished), "random"
        return {
            "best": {"row": best, **figures(finished[best])},
            "scratch": {"row": scratch, **figures(finished[scratch])},
        }

    def table(self, finished: Mapping[str, Cells]) -> str:
        """All rows as Markdown, in per cent; a dash where there is no finished cell."""
        lines = [["", "images", *COLUMNS], ["---"] * (len(COLUMNS) + 2)]
        for name, row in self.rows.items():
            found = figures(finished.get(name, {}))
            images = f"{row.images:,}" if row.target else "0"
            lines.append([name, images, *(f"{100 * found[k]:.1f}" if k in found else "-" for k in COLUMNS.values())])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def page(self, home: Path) -> str:
        """README.md of the results, with the table of what is finished between its markers."""
        before, begin, rest = (home / "README.md").read_text().partition(_BEGIN)
        return f"{before}{begin}{self.table(self.read(home))}\n{_END}{rest.partition(_END)[2]}"

    def write(self, home: Path) -> None:
        """Bring the page up to date, where there is one, and summary and plots, where there is something to compare."""
        if (home / "README.md").exists():
            (home / "README.md").write_text(self.page(home))
        finished = self.read(home)
        if "random" in finished and self.grid(finished):
            (home / "summary.json").write_text(json.dumps(self.summary(finished), indent=1) + "\n")
        for name, plot in self.plots(finished).items():
            (home / name).write_text(plot)

    def plots(self, finished: Mapping[str, Cells]) -> dict[str, str]:
        """SVG by file name: fine-tuning by labels, and the learning curve; those that have lines of two points."""
        drawn = {
            "labels.svg": (self.by_labels(finished), "labels, % of those of train/", "fine-tuned"),
            "images.svg": (self.by_images(finished), "images seen in pretraining", self.curve),
        }
        return {
            file: log_lines(lines, xlabel, f"{what}: accuracy on test images, %", beside="random")
            for file, (lines, xlabel, what) in drawn.items()
            if lines
        }

    def by_labels(self, finished: Mapping[str, Cells]) -> Lines:
        """Accuracy in per cent by the percentage of labels, of rows that have two such points or more."""
        found = {name: figures(row) for name, row in finished.items()}
        return _lines(
            {name: {share: row.get(f"finetune_{share}pct") for share in (1, 10, 100)} for name, row in found.items()}
        )

    def by_images(self, finished: Mapping[str, Cells]) -> Lines:
        """Accuracy in per cent by images of pretraining, for each way to measure the rows of the learning curve."""
        if not self.curve:
            return {}
        of = replace(self.rows[self.curve], images=0)
        rows = {
            self.rows[name].images: figures(row)
            for name, row in finished.items()
            if replace(self.rows[name], images=0) == of
        }
        kinds = {"k-NN": "knn", "linear": "linear", "10 % of labels": "finetune_10pct"}
        return _lines({name: {images: row.get(kind) for images, row in rows.items()} for name, kind in kinds.items()})


def _lines(shares: Mapping[str, Mapping[int, float | None]]) -> Lines:
    """In per cent, without what is not measured; only lines of two points or more."""
    found = {name: {x: 100 * y for x, y in line.items() if y is not None} for name, line in shares.items()}
    return {name: line for name, line in found.items() if len(line) > 1}


COLUMNS = {
    "k-NN": "knn",
    "linear": "linear",
    "linear, 5 a class": "linear_5_a_class",
    "linear, 10 a class": "linear_10_a_class",
    "1 % of labels": "finetune_1pct",
    "10 %": "finetune_10pct",
    "100 %": "finetune_100pct",
}


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


def run(study: Study, about: str | None, arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Do the cells that are not finished, each kept as a file as soon as it is; what is finished then, of all rows."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{study.name}", dest="images", type=Path)
    parser.add_argument("--tokenizers", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs") / study.name)
    parser.add_argument("--out", type=Path, default=study.home)
    parser.add_argument("--row", action="append")
    parser.add_argument("--cell", action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="bf16", help="auto: the faster here")
    parser.add_argument("--page", action="store_true", help="bring page and summary up to date, and do nothing else")
    given = parser.parse_args(arguments)
    if not given.page:
        if given.images is None or given.tokenizers is None:
            parser.error(f"--{study.name} and --tokenizers are required, or --page")
        torch.set_num_threads(given.threads)
        compute = choose_compute(precision=given.precision)
        places = Places(given.images, given.tokenizers, given.runs)
        for name in given.row or study.rows:
            cells = study.cells(name, places)
            for label in _due(cells, given.cell, given.out / name, given.runs / name):
                target = given.out / name / f"{label}.json"
                _keep(cells[label], compute, target)
                write_log(given.runs / name / label, target.with_suffix(".jsonl"))
                study.write(given.out)
    study.write(given.out)
    return study.read(given.out)


def _due(cells: Mapping[str, Cell], wanted: list[str] | None, results: Path, runs: Path) -> list[str]:
    """The cells to do: those without a result, all or the wanted ones.

    Results are kept longer than run folders: a pretraining that they need and whose folder is gone is done again.
    """
    due = [label for label in cells if not (results / f"{label}.json").exists() and (not wanted or label in wanted)]
    needed = bool(due) and "pretrain" in cells and not RunFolder(runs / "pretrain").read_result()
    return ["pretrain", *due] if needed and "pretrain" not in due else due


def _keep(cell: Cell, compute: Compute, target: Path) -> None:
    """Do a cell, and write what it found and what it took."""
    began, used = time.time(), time.process_time()
    result = cell(compute)
    result |= {"seconds": time.time() - began, "processor_seconds": time.process_time() - used}
    result |= {"processor": platform.machine(), "torch": torch.__version__, "compute": compute.describe()}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
