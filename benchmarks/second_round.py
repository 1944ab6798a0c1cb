"""What tokens with meaning are worth at equal compute on CIFAR-10: a second round, VQ-KD, patch aggregation.

    python benchmarks/second_round.py --cifar10 FOLDER --tokenizers RUNS

FOLDER holds train/ and test/, RUNS the run folders of study_tokenizers.py. Of the same time (`BUDGETS`), a way (`WAYS`)
spends all on one pretraining at the setting of equal_time.py, or a part on a first round and the rest on a tokenizer
that learns from it and a second round. On a busy machine the same step takes up to twice the time, so the steps of all
ways are timed in turn in one process, and costs are counted in steps of the plain pretraining (BUDGET-costs.json). A
budget, a way and a seed are a file of docs/results/cifar10/second_round; finished ones are left alone, and
second_round.json beside them has the means.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from ablations_cifar10 import BEST, WITH_ADAMW, Variation, frozen_features, keep
from printing import put_table
from study import DataFiles, go_on, in_turn, study_parser
from study_cifar10 import STUDY

from smalti.core.compute import Compute, choose_compute
from smalti.core.files import write_json
from smalti.core.log import Log
from smalti.data.load import InMemoryData
from smalti.models.patch_aggregation import PatchAggregation
from smalti.models.vit import VisionTransformer
from smalti.recipes import vqkd
from smalti.runs.models import load_model
from smalti.runs.pretrain import main as pretrain
from smalti.runs.pretrain import prepare as prepare_pretraining
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.teachers import read_teacher
from smalti.runs.tokenizers import load_tokenizer
from smalti.runs.train_tokenizer import main as train_tokenizer
from smalti.runs.train_tokenizer import prepare as prepare_tokenizer
from smalti.runs.train_tokenizer import start
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.kmeans_features import KMeansFeatures
from smalti.tokenizers.teacher_features import FIT_IMAGES
from smalti.tokenizers.vqkd import VQKD
from smalti.training.training_plan import Plan

HOME = Path(__file__).parent.parent / "docs" / "results" / "cifar10" / "second_round"
VQKD_SHARE = 0.125
"""Of the total, for training VQ-KD."""
CODES = 1024
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Budget:
    """What every way may spend.

    Attributes:
        setting: of the pretrainings.
        total, first: steps of the plain pretraining for everything, and those of a first round.
    """

    setting: Variation
    total: int
    first: int


BUDGETS = {
    "1632": Budget(WITH_ADAMW, 5962, 2981),
    "3600": Budget(BEST, 12_460, 2813),
    "7200": Budget(BEST, 24_934, 12_460),
    "14400": Budget(BEST, 49_883, 24_934),
}
"""By core-seconds; the first rounds are those of 816, 816, 3 600 and 7 200 core-seconds of equal_time.py."""


@dataclass(frozen=True)
class Way:
    """A way to spend the time.

    Attributes:
        tokens: of the last pretraining: those of pixels, or learned from a first round.
        go_on: the second round starts from the weights of the first.
        masks_per_image: in the last pretraining; the tokenizer, and so the teacher, sees an image once for all of them.
        aggregation: of patches, in the last pretraining.
    """

    tokens: str = "pixels"
    go_on: bool = False
    masks_per_image: int = 1
    aggregation: PatchAggregation = PatchAggregation()


WAYS = {
    "one-round": Way(),
    "features": Way("features"),
    "vqkd": Way("vqkd"),
    "aggregated": Way(aggregation=PatchAggregation(depth=2, layer=4)),
    "features-go-on": Way("features", go_on=True),
    "features-masks": Way("features", masks_per_image=4),
    "features-go-on-masks": Way("features", go_on=True, masks_per_image=4),
    "features-aggregated": Way("features", aggregation=PatchAggregation(depth=2, layer=4)),
}
_STEPS = ("features", "features-masks", "vqkd", "aggregated", "features-aggregated")
TIMED = {"pixels": Way(), **{name: WAYS[name] for name in _STEPS}}
"""Each kind of step once."""


@dataclass(frozen=True)
class Study:
    """The runs of a budget and a seed, with the name of both. What is there is taken, what was cut off goes on."""

    name: str
    budget: Budget
    seed: int
    places: DataFiles
    images: InMemoryData
    compute: Compute

    @property
    def folder(self) -> Path:
        """Of the runs."""
        return self.places.runs / self.name

    def pretraining(self, way: Way, tokenizer: str, steps: int, out: Path) -> Pretrain:
        """A pretraining of so many steps."""
        setting = replace(self.budget.setting, masks_per_image=way.masks_per_image)
        config = setting.pretraining(out, self.places, steps * setting.batch_size)
        init = str(self.folder / "first") if way.go_on else ""
        return replace(
            config,
            tokenizer=tokenizer or config.tokenizer,
            seed=self.seed,
            patch_aggregation=way.aggregation,
            init_from=init,
            accept_tokenizer=True,
        )

    def first(self) -> str:
        """The first round."""
        out = self.folder / "first"
        go_on(self.pretraining(Way(), "", self.budget.first, out), pretrain, self.compute)
        return str(out)

    def features(self) -> TrainTokenizer:
        """The fitting of clusters to the features of the first round."""
        tokenizer = KMeansFeatures(teacher=self.first(), vocab_size=CODES)
        out, data = self.folder / "tokenizer-features", STUDY.data(self.places)
        return TrainTokenizer(data, tokenizer=tokenizer, init_images=FIT_IMAGES, seed=self.seed, out=str(out))

    def vqkd(self, steps: int, out: Path) -> TrainTokenizer:
        """The training of a VQ-KD tokenizer, with the learning rate and crops of its recipe and those of the study."""
        size = self.budget.setting.batch_size
        return TrainTokenizer(
            STUDY.data(self.places),
            tokenizer=VQKD(teacher=self.first(), vocab_size=CODES),
            crop=self.pretraining(Way(), "", 1, out).crop,
            optimiser=vqkd.train_tokenizer().optimiser,
            plan=Plan(steps=steps, batch_size=size, log_every=50, save_every=250, repeat=True),
            seed=self.seed,
            out=str(out),
        )

    def taught(self, config: TrainTokenizer) -> tuple[TrainTokenizer, VisionTransformer]:
        """The configuration with what is known of the first round, and the first round."""
        assert isinstance(config.tokenizer, KMeansFeatures | VQKD)
        tokenizer, data, teacher, _ = read_teacher(config.tokenizer, config.data, self.compute, Log())
        return replace(config, tokenizer=tokenizer, data=data), teacher

    def costs(self, rounds: int) -> dict[str, float]:
        """What steps of all kinds, and fitting clusters, cost in steps of the plain pretraining."""
        fitted, untrained = self.features(), self.vqkd(1, self.folder / "untrained")
        tokenizers = {"pixels": "", "features": fitted.out, "vqkd": untrained.out}
        for config in (fitted, untrained):
            go_on(config, train_tokenizer, self.compute)
        steps: dict[str, Callable[[], object]] = {}
        for name, way in TIMED.items():
            pretraining = replace(self.pretraining(way, tokenizers[way.tokens], rounds + 2, Path()), compile="on")
            tokenizer = load_tokenizer(pretraining.tokenizer, self.compute)
            steps[name] = self._step(*prepare_pretraining(pretraining, self.images, tokenizer, self.compute))
        config, teacher = self.taught(self.vqkd(rounds + 2, Path()))
        steps["training-vqkd"] = self._step(*prepare_tokenizer(config, self.images, self.compute, teacher))
        seconds = in_turn(steps, rounds)
        began = time.process_time()
        config, teacher = self.taught(fitted)
        start(config, self.images, teacher)
        seconds["fitting-features"] = time.process_time() - began
        found = {name: spent / seconds["pixels"] for name, spent in seconds.items()}
        return found | {"seconds": seconds["pixels"]}

    def _step(self, trainer: Any, batches: Any) -> Callable[[], object]:
        return lambda: trainer.train_step(batches(trainer.step), self.compute, with_metrics=False)

    def measured(self, name: str, costs: Mapping[str, float]) -> dict[str, Any]:
        """Pretrain in a way, and evaluate frozen features."""
        way, out = WAYS[name], self.folder / name
        steps, vqkd_steps = planned(name, self.budget, costs)
        tokenizer = ""
        if way.tokens == "features":
            tokenizer = self.features().out
            go_on(self.features(), train_tokenizer, self.compute)
        if way.tokens == "vqkd":
            tokenizer = str(self.folder / "tokenizer-vqkd")
            go_on(self.vqkd(vqkd_steps, Path(tokenizer)), train_tokenizer, self.compute)
        go_on(self.pretraining(way, tokenizer, steps, out), pretrain, self.compute)
        protocol = replace(STUDY.protocol, draws=3)
        backbone = load_model(str(out), self.compute).backbone
        frozen = frozen_features(backbone, self.places, self.images, self.compute, protocol)
        counts = {"steps": steps, "vqkd_steps": vqkd_steps, "seed": self.seed}
        return counts | {"linear": frozen.linear, "knn": frozen.knn, "frozen": frozen.as_dict()}


def planned(name: str, budget: Budget, costs: Mapping[str, float]) -> tuple[int, int]:
    """The steps of the last pretraining, and those of training VQ-KD, that a way has time for."""
    way, left, vqkd_steps = WAYS[name], float(budget.total), 0
    if way.tokens != "pixels":
        left -= budget.first
    if way.tokens == "features":
        left -= costs["fitting-features"]
    if way.tokens == "vqkd":
        vqkd_steps = round(VQKD_SHARE * budget.total / costs["training-vqkd"])
        left -= vqkd_steps * costs["training-vqkd"]
    step = next(kind for kind, timed in TIMED.items() if timed == replace(way, go_on=False))
    return round(left / costs[step]), vqkd_steps


def collected(home: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The means over the seeds that have ended, by budget and way."""
    tables = dict[str, dict[str, dict[str, Any]]]()
    for budget, name in product(BUDGETS, WAYS):
        cells = [json.loads(path.read_text()) for path in sorted(home.glob(f"{budget}-{name}-[0-9].json"))]
        if cells:
            few = [cell["frozen"]["few"] for cell in cells]
            row: dict[str, Any] = {c: statistics.mean(cell[c] for cell in cells) for c in ("knn", "linear")}
            row |= {share: statistics.mean(cell[share]["accuracy"] for cell in few) for share in ("10 %", "1 %")}
            row |= {"steps": cells[0]["steps"], "seeds": [cell["seed"] for cell in cells]}
            tables.setdefault(budget, {})[name] = row
    return tables


def table(home: Path) -> str:
    """The means as Markdown."""
    lines = [
        "| core-seconds | | steps | k-NN | linear probe | linear, 10 % of labels | 1 % | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for budget, rows in collected(home).items():
        for name, row in rows.items():
            figures = (f"{100 * row[column]:.1f}" for column in ("knn", "linear", "10 %", "1 %"))
            cells = [f"{int(budget):,}", name, f"{row['steps']:,}", *figures, str(len(row["seeds"]))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(home: Path) -> None:
    """Bring the means and the table of the page up to date."""
    write_json(home.with_suffix(".json"), collected(home))
    put_table(home / "README.md", table(home))


def main() -> None:
    """Run the cells that are not finished, and print the table."""
    parser = study_parser(__doc__, HOME, 20)
    parser.add_argument("--budget", action="append", choices=list(BUDGETS), help="core-seconds")
    parser.add_argument("--way", action="append", choices=list(WAYS))
    parser.add_argument("--seed", type=int, action="append", choices=SEEDS)
    given = parser.parse_args()
    if not given.page:
        if given.cifar10 is None or given.tokenizers is None:
            parser.error("--cifar10 and --tokenizers are required, or --page")
        torch.set_num_threads(1)
        compute = choose_compute(precision=given.precision)
        places = DataFiles(given.cifar10, given.tokenizers, given.runs)
        images = STUDY.data(places).load(Log())
        for budget, seed in product(given.budget or BUDGETS, given.seed or SEEDS):
            study = Study(f"{budget}-{seed}", BUDGETS[budget], seed, places, images, compute)
            keep(given.out, f"{budget}-costs", partial(study.costs, given.rounds))
            costs = json.loads((given.out / f"{budget}-costs.json").read_text())
            for name in given.way or WAYS:
                keep(given.out, f"{budget}-{name}-{seed}", partial(study.measured, name, costs))
                write_page(given.out)
    write_page(given.out)
    print(table(given.out))


if __name__ == "__main__":
    main()
