"""What each method has learned on CIFAR-10 after as much time: ours, and MAE and SimMIM of lightly.

    python benchmarks/equal_time.py --cifar10 FOLDER --tokenizers RUNS

FOLDER holds train/ and test/, RUNS the run folders of study_tokenizers.py. Every method runs at the best setting that
its search found (ablations_cifar10.py, search_lightly.py), with three seeds of pretraining. On a busy machine the same
step takes up to twice the time, so steps of all methods are timed in turn in one process (step-seconds.json), and a
budget in core-seconds becomes a number of steps; ours pays for its tokenizer too. A cell is a file of
docs/results/cifar10/equal_time, finished ones are left alone; equal_time.json beside them has the means over the seeds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ablations_cifar10 import Variation, keep
from compare_lightly import fine_tune, read_encoder, step_seconds
from lightly_methods import BATCH, METHODS, OURS, pretrain
from safetensors.torch import save_file
from study import DataFiles, go_on
from study_cifar10 import STUDY
from timm.layers import set_fused_attn

from smalti.core.compute import Compute, choose_compute
from smalti.core.files import write_json
from smalti.core.log import Log
from smalti.data.datasets.open import open_source
from smalti.data.load import InMemoryData, read_source
from smalti.evaluation.battery import battery
from smalti.evaluation.label_draws import mean_share_interval
from smalti.models.decoder import CrossAttention
from smalti.runs.finetune import main as finetune
from smalti.runs.models import load_model
from smalti.runs.pretrain import main as pretrain_ours

HOME = Path(__file__).parent.parent / "docs" / "results" / "cifar10" / "equal_time"
BUDGETS, SEEDS = (816, 3600), (0, 1, 2)
"""Core-seconds of pretraining: those of the row of tokens that MAE was first compared with, and an hour."""
BEST = Variation(tokenizer="kmeans-1024-whitened-50", decoder=CrossAttention(predicted=0.5))
"""So far: what the searches have found is not settled."""
PEERS = {"mae": METHODS["mae-our-settings"], "simmim": METHODS["simmim-our-settings"]}
TOKENIZER_SECONDS = 4.3
"""Of a core, for k-means (docs/results/tokenizers/kmeans-1024.json)."""
_SHARES = (10, 1, 100)


def steps_in(budget: float, method: str, seconds: Mapping[str, float]) -> int:
    """The steps that a method has time for."""
    left = budget - TOKENIZER_SECONDS if method == "ours" else budget
    return round(left / seconds[method])


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

    def measured(self) -> dict[str, Any]:
        """Pretrain, evaluate frozen features, and fine-tune with a tenth, a hundredth and all of the labels."""
        self.folder.mkdir(parents=True, exist_ok=True)
        init, seconds = self._ours() if self.method == "ours" else self._theirs()
        backbone = load_model(str(init), self.compute).backbone if self.method == "ours" else read_encoder(init)
        test = read_source(open_source(str(self.places.images / "test"), 3), STUDY.data(self.places), Log())
        frozen = battery(backbone, self.images.train, test, self.compute, 0, replace(STUDY.protocol, draws=3))
        figures = {"linear": frozen.linear, "knn": frozen.knn}
        figures |= {f"finetune_{percent}pct": self._finetuned(init, percent) for percent in _SHARES}
        counts = {"steps": self.steps, "images": self.steps * BATCH, "seed": self.seed}
        return counts | {"processor_seconds": seconds, "frozen": frozen.as_dict()} | figures

    def _ours(self) -> tuple[Path, float]:
        config = BEST.pretraining(self.folder / "pretrain", self.places, self.steps * BEST.batch_size)
        began = time.process_time()
        go_on(replace(config, seed=self.seed), pretrain_ours, self.compute)
        return self.folder / "pretrain", time.process_time() - began

    def _theirs(self) -> tuple[Path, float]:
        method, path = PEERS[self.method], self.folder / "encoder.safetensors"
        training = pretrain(method, self.images, self.steps, self.folder, self.compute, compiled=True, seed=self.seed)
        save_file(training.model.backbone.vit.state_dict(), path)
        return path, training.seconds

    def _finetuned(self, init: Path, percent: int) -> float:
        out, data = self.folder / f"finetune-{percent}pct", self.places.images
        if self.method != "ours":
            return float(fine_tune(init, out, data, percent, STUDY, self.compute)["test_accuracy"])
        config = STUDY.finetuning(str(init), out, self.places, share=percent / 100, seed=0, layer_decay=0.8)
        return float(go_on(config, finetune, self.compute)["test_accuracy"])


def collected(home: Path) -> dict[str, dict[str, Any]]:
    """The means over the seeds by budget and method, with 95 % intervals where there are several seeds."""
    tables: dict[str, dict[str, Any]] = {}
    for budget in BUDGETS:
        for method in ("ours", *PEERS):
            cells = [json.loads(path.read_text()) for path in sorted(home.glob(f"{budget}-{method}-*.json"))]
            if not cells:
                continue
            names = ["linear", "knn", *(f"finetune_{percent}pct" for percent in sorted(_SHARES))]
            by_name = {name: [cell[name] for cell in cells] for name in names}
            row: dict[str, Any] = {name: statistics.mean(values) for name, values in by_name.items()}
            row["intervals"] = {name: mean_share_interval(values) for name, values in by_name.items()}
            tables.setdefault(str(budget), {})[method] = row | {"seeds": [cell["seed"] for cell in cells]}
    return tables


def main() -> None:
    """Run the cells that are not finished, and write the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help="a folder with train/ and test/")
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/equal_time"))
    parser.add_argument("--out", type=Path, default=HOME)
    parser.add_argument("--budget", type=int, action="append", choices=BUDGETS)
    parser.add_argument("--method", action="append", choices=["ours", *PEERS])
    parser.add_argument("--seed", type=int, action="append", choices=SEEDS)
    parser.add_argument("--rounds", type=int, default=40, help="of timing a step")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="bf16", help="auto: the faster here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    set_fused_attn(False)
    compute = choose_compute(precision=given.precision)
    places = DataFiles(given.cifar10, given.tokenizers, given.runs)
    timed = given.out / "step-seconds.json"
    config = replace(BEST.pretraining(Path(), places, 128 * (given.rounds + 2)), compile="on")
    keep(given.out, timed.stem, lambda: step_seconds(config, PEERS, compute, given.rounds))
    seconds = json.loads(timed.read_text())
    images = replace(OURS.data, path=str(given.cifar10 / "train")).load(Log())
    for budget in given.budget or BUDGETS:
        for seed in given.seed or SEEDS:
            for method in given.method or ("ours", *PEERS):
                name, steps = f"{budget}-{method}-{seed}", steps_in(budget, method, seconds)
                keep(given.out, name, Cell(method, steps, seed, given.runs / name, places, images, compute).measured)
                write_json(given.out.with_suffix(".json"), collected(given.out))
    print(json.dumps(collected(given.out), indent=1))


if __name__ == "__main__":
    main()
