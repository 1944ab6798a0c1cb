"""What each method has learned on CIFAR-10 after as much time: ours, and MAE and SimMIM of lightly.

    python benchmarks/equal_time.py --cifar10 FOLDER --tokenizers RUNS

FOLDER holds train/ and test/, RUNS the run folders of study_tokenizers.py. Every method runs at the best setting that
its search found (ablations_cifar10.py, search_lightly.py), with three seeds of pretraining. On a busy machine the same
step takes up to twice the time, so steps of all methods are timed in turn in one process (step-seconds.json), and a
budget in core-seconds becomes a number of steps; ours pays for its tokenizer too. What is known of a pretraining is a
file of docs/results/cifar10/equal_time for its frozen features, and one for each share of labels that it was fine-tuned
with, and each learning rate of that; finished ones are left alone. equal_time.json beside them has the means over the
seeds, fine-tuned at the rate with the best accuracy on validation images.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from ablations_cifar10 import BEST, WITH_ADAMW, frozen_features, keep
from compare_lightly import fine_tune, read_encoder, step_seconds
from lightly_methods import BATCH, METHODS, OURS, pretrain
from printing import put_table
from safetensors.torch import save_file
from study import FINETUNING_LR, DataFiles, go_on, study_parser
from study_cifar10 import STUDY
from timm.layers import set_fused_attn

from smalti.core.compute import Compute, choose_compute
from smalti.core.files import write_json
from smalti.core.log import Log
from smalti.data.load import InMemoryData
from smalti.evaluation.label_draws import mean_share_interval
from smalti.runs.finetune import main as finetune
from smalti.runs.models import load_model
from smalti.runs.pretrain import main as pretrain_ours

HOME = Path(__file__).parent.parent / "docs" / "results" / "cifar10" / "equal_time"
BUDGETS, SEEDS = (816, 3600, 7200), (0, 1, 2)
"""Core-seconds of pretraining: those of the row of tokens that MAE was first compared with, an hour, and two."""
OF_OURS = {"ours": BEST, "ours-adamw": WITH_ADAMW}
PEERS = {
    "mae": replace(METHODS["mae-our-settings"], lr=8e-3, muon=True),
    "mae-adamw": METHODS["mae-our-settings"],
    "simmim": METHODS["simmim-our-settings"],
}
NAMES = {
    "ours": "ours, Muon",
    "mae": "MAE, Muon",
    "ours-adamw": "ours, AdamW",
    "mae-adamw": "MAE, AdamW",
    "simmim": "SimMIM, AdamW",
}
TOKENIZER_SECONDS = 4.3
"""Of a core, for k-means (docs/results/tokenizers/kmeans-1024.json)."""
TIMED = "step-seconds"
_SHARES = (10, 1, 100)
"""Per cent of the labels."""


def steps_in(budget: float, method: str, seconds: Mapping[str, float]) -> int:
    """The steps that a method has time for."""
    left = budget - TOKENIZER_SECONDS if method in OF_OURS else budget
    return round(left / seconds[method])


def time_steps(home: Path, places: DataFiles, compute: Compute, rounds: int) -> dict[str, float]:
    """Seconds of a step of each method, timed in turn in this process, or as they were timed before."""
    ours = {
        name: replace(setting.pretraining(Path(), places, BATCH * (rounds + 2)), compile="on")
        for name, setting in OF_OURS.items()
    }
    keep(home, TIMED, lambda: step_seconds(ours, PEERS, compute, rounds))
    seconds: dict[str, float] = json.loads((home / f"{TIMED}.json").read_text())
    return seconds


@dataclass(frozen=True)
class Cell:
    """One pretraining, and what it is worth.

    Attributes:
        folder: of its runs.
        steps: of pretraining.
        seed: of pretraining.
    """

    method: str
    steps: int
    seed: int
    folder: Path
    places: DataFiles
    images: InMemoryData
    compute: Compute

    def frozen(self) -> dict[str, Any]:
        """Pretrain, and evaluate frozen features."""
        init = self.pretrained()
        backbone = load_model(str(init), self.compute).backbone if self.method in OF_OURS else read_encoder(init)
        protocol = replace(STUDY.protocol, draws=3)
        frozen = frozen_features(backbone, self.places, self.images, self.compute, protocol)
        counts = {"steps": self.steps, "images": self.steps * BATCH, "seed": self.seed}
        return counts | {"linear": frozen.linear, "knn": frozen.knn, "frozen": frozen.as_dict()}

    def pretrained(self) -> Path:
        """Where the network is; it is pretrained where it is not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.method in OF_OURS:
            setting = OF_OURS[self.method]
            config = setting.pretraining(self.folder / "pretrain", self.places, self.steps * setting.batch_size)
            go_on(replace(config, seed=self.seed), pretrain_ours, self.compute)
            return self.folder / "pretrain"
        method, path = PEERS[self.method], self.folder / "encoder.safetensors"
        if not path.exists():
            trained = pretrain(method, self.images, self.steps, self.folder, self.compute, True, self.seed)
            save_file(trained.model.backbone.vit.state_dict(), path)
        return path

    def finetuned(self, percent: int, lr: float) -> dict[str, Any]:
        """Accuracy on test images after fine-tuning with so many per cent of the labels."""
        init, out = self.pretrained(), self.folder / f"finetune-{percent}pct{suffix(lr)}"
        if self.method in PEERS:
            found = fine_tune(init, out, self.places.images, percent, STUDY, self.compute, lr)
        else:
            share = percent / 100
            config = STUDY.finetuning(str(init), out, self.places, share=share, seed=0, layer_decay=0.8, lr=lr)
            found = go_on(config, finetune, self.compute)
        validation = float(found["validation_accuracy"])
        accuracy = {f"finetune_{percent}pct": float(found["test_accuracy"]), "validation": validation}
        return accuracy | {"lr": lr, "seed": self.seed}


def suffix(lr: float) -> str:
    """What is added to the name of a fine-tuning at a rate that is not that of the studies."""
    return "" if lr == FINETUNING_LR else f"-lr-{lr:g}"


def at_best_rate(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of fine-tunings of several seeds at several rates: those at the best one by validation images.

    A rate that fewer seeds were fine-tuned with is not chosen.
    """
    by_rate: dict[float, list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        by_rate[cell.get("lr", FINETUNING_LR)].append(cell)
    if len(by_rate) == 1:
        return list(cells)
    tried = by_rate.values()
    return max(tried, key=lambda found: (len(found), statistics.mean(cell["validation"] for cell in found)))


def collected(home: Path) -> dict[str, dict[str, Any]]:
    """The means over the seeds by budget and method, with 95 % intervals where there are several seeds.

    `seeds` are those of the frozen features; a column of fine-tuning may have fewer, which `values` shows, and `lr` is
    its learning rate.
    """
    tables: dict[str, dict[str, Any]] = {}
    for budget, method in product(BUDGETS, NAMES):
        cells = [json.loads(path.read_text()) for path in sorted(home.glob(f"{budget}-{method}-[0-9]*.json"))]
        frozen = [cell for cell in cells if "linear" in cell]
        values = {name: [cell[name] for cell in frozen] for name in ("linear", "knn") if frozen}
        rates = dict[str, float]()
        for name in (f"finetune_{percent}pct" for percent in sorted(_SHARES)):
            if found := [cell for cell in cells if name in cell]:
                best = at_best_rate(found)
                values[name], rates[name] = [cell[name] for cell in best], best[0].get("lr", FINETUNING_LR)
        if values:
            row: dict[str, Any] = {name: statistics.mean(found) for name, found in values.items()}
            row["intervals"] = {name: mean_share_interval(found) for name, found in values.items()}
            row |= {"values": values, "lr": rates, "seeds": sorted(cell["seed"] for cell in frozen)}
            tables.setdefault(str(budget), {})[method] = row
    return tables


def table(home: Path) -> str:
    """The means as Markdown; a dash is what has not been measured."""
    lines = ["| core-seconds | | images | k-NN | linear probe | 1 % of labels, fine-tuned | 10 % | 100 % | seeds |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for budget, rows in collected(home).items():
        for method, row in rows.items():
            images = json.loads((home / f"{budget}-{method}-{row['seeds'][0]}.json").read_text())["images"]
            columns = ("knn", "linear", *(f"finetune_{percent}pct" for percent in sorted(_SHARES)))
            figures = (f"{100 * row[name]:.1f}" if name in row else "-" for name in columns)
            shown = [f"{int(budget):,}", NAMES[method], f"{images:,}", *figures, str(len(row["seeds"]))]
            lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def write_page(home: Path) -> None:
    """Bring the means and the table of the page up to date."""
    write_json(home.with_suffix(".json"), collected(home))
    put_table(home / "README.md", table(home))


def prepare(parser: argparse.ArgumentParser, given: argparse.Namespace, timed: Path) -> Callable[[int, str, int], Cell]:
    """What makes the cell of a budget, a method and a seed, once steps have been timed (results in `timed`)."""
    if given.cifar10 is None or given.tokenizers is None:
        parser.error("--cifar10 and --tokenizers are required, or --page")
    torch.set_num_threads(1)
    set_fused_attn(False)
    compute = choose_compute(precision=given.precision)
    places = DataFiles(given.cifar10, given.tokenizers, given.runs)
    seconds = time_steps(timed, places, compute, given.rounds)
    images = replace(OURS.data, path=str(given.cifar10 / "train")).load(Log())

    def cell(budget: int, method: str, seed: int) -> Cell:
        steps, folder = steps_in(budget, method, seconds), given.runs / f"{budget}-{method}-{seed}"
        return Cell(method, steps, seed, folder, places, images, compute)

    return cell


def main() -> None:
    """Run the cells that are not finished, and write the means."""
    parser = study_parser(__doc__, HOME, 40)
    parser.add_argument("--budget", type=int, action="append", choices=BUDGETS)
    parser.add_argument("--method", action="append", choices=list(NAMES))
    parser.add_argument("--seed", type=int, action="append", choices=SEEDS)
    parser.add_argument("--labels", type=int, action="append", choices=_SHARES, help="per cent to fine-tune with")
    parser.add_argument("--lr", type=float, default=FINETUNING_LR, help="of fine-tuning")
    parser.add_argument("--no-labels", action="store_true", help="frozen features alone")
    given = parser.parse_args()
    if given.page:
        write_page(given.out)
        return
    cell = prepare(parser, given, given.out)
    shares = () if given.no_labels else given.labels or _SHARES
    for budget, seed in product(given.budget or BUDGETS, given.seed or SEEDS):
        methods = given.method or NAMES
        cells = {f"{budget}-{method}-{seed}": cell(budget, method, seed) for method in methods}
        for name, each in cells.items():
            keep(given.out, name, each.frozen)
            write_page(given.out)
        for percent, (name, each) in product(shares, cells.items()):
            keep(given.out, f"{name}-{percent}{suffix(given.lr)}", partial(each.finetuned, percent, given.lr))
            write_page(given.out)
    print(json.dumps(collected(given.out), indent=1))


if __name__ == "__main__":
    main()
