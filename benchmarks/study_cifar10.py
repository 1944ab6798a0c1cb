"""Is pretraining worth anything? CIFAR-10, one small ViT, several targets and masks, measured in the same way.

    python benchmarks/study_cifar10.py --cifar10 FOLDER --tokenizers RUNS

FOLDER holds train/ and test/, RUNS the run folders of study_tokenizers.py. A row is a way of pretraining, or none; its
cells are the pretraining, the probes of frozen features, and fine-tuning with 1 %, 10 % and all labels. Every
pretraining sees the same number of images, every fine-tuning takes the same steps with the same recipe.
Cells that were cut off go on where they stopped; finished ones are left alone: each is a file of
docs/results/cifar10/ROW. Choices (layer, regularisation, checkpoint, best row) are made on images held out of train/.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from smalti.core.compute import Compute, choose_compute
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
from smalti.runs.folder import is_run, read_config
from smalti.runs.pretrain import Pretrain, load_model
from smalti.runs.pretrain import main as pretrain
from smalti.training.optim import AdamW
from smalti.training.plan import Plan
from smalti.training.targets import Pixels, Tokens

HOME = Path(__file__).parent.parent / "docs" / "results" / "cifar10"
_IMAGES = 300_000
_BATCH = 128
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """A way of pretraining: what is predicted, and where. Without a target there is none.

    Attributes:
        layer_decay: of fine-tuning.
    """

    target: Tokens | Pixels | None = None
    masking: Blockwise | Random = Blockwise(ratio=0.4)
    tokenizer: str = ""
    images: int = _IMAGES
    layer_decay: float = 0.8


_RANDOM = Random(ratio=0.4)
ROWS = {
    "random": Row(),
    "random-no-layer-decay": Row(layer_decay=1.0),
    "dvae-blockwise": Row(Tokens(), tokenizer="dvae-1024"),
    "dvae-random": Row(Tokens(), _RANDOM, "dvae-1024"),
    "pixels-blockwise": Row(Pixels()),
    "pixels-random": Row(Pixels(), _RANDOM),
    "vq-blockwise": Row(Tokens(), tokenizer="vq-1024"),
    "kmeans-blockwise": Row(Tokens(), tokenizer="kmeans-1024"),
}
BUDGETS = (37_500, 75_000, 150_000, 300_000, 600_000, 1_200_000, 2_400_000)
"""Images of the learning curve of the best row, each a pretraining of its own. It is fine-tuned with 10 % alone."""
_CURVE = "dvae-blockwise"
ROWS |= {f"{_CURVE}-{images}": replace(ROWS[_CURVE], images=images) for images in BUDGETS if images != _IMAGES}

BACKBONE = ViT(
    img_size=(32, 32),
    patch_size=4,
    embed_dim=128,
    depth=6,
    num_heads=4,
    drop_path_rate=0.0,
    init="xavier",
    pos_init="sincos",
)

PROTOCOL = Battery(poolings=("cls", "mean", "both", "2x2"))


class Places(NamedTuple):
    """Where things are."""

    cifar10: Path
    tokenizers: Path
    runs: Path

    @property
    def train(self) -> Data:
        """Training images; a twentieth is held out, for the loss of pretraining and for every choice."""
        return Data(path=str(self.cifar10 / "train"), channels=3, side=32)


def pretraining(row: Row, out: Path, places: Places) -> Pretrain:
    """The pretraining of a row."""
    assert row.target is not None
    return Pretrain(
        data=places.train,
        tokenizer=str(places.tokenizers / row.tokenizer) if row.tokenizer else "",
        out=str(out),
        backbone=BACKBONE,
        masking=row.masking,
        target=row.target,
        crop=RandomResizedCrop(scale=(0.4, 1.0)),
        jitter=NO_JITTER,
        optimiser=AdamW(lr=2e-3, warmup_ratio=0.08, betas=(0.9, 0.98)),
        plan=Plan(steps=-(-row.images // _BATCH), batch_size=_BATCH, log_every=50, save_every=250),
    )


def finetuning(init: str, out: Path, places: Places, *, share: float, seed: int, layer_decay: float) -> Finetune:
    """Fine-tuning with a share of the labels, from a pretraining or from nothing."""
    steps = 500 if share == 0.01 else 2000
    return Finetune(
        data=places.train,
        test=str(places.cifar10 / "test"),
        init=init,
        out=str(out),
        task=Classification(mixing=Mixing(mixup=0.8, cutmix=1.0)),
        backbone=replace(BACKBONE, drop_path_rate=0.1),
        crop=RandomResizedCrop(scale=(0.4, 1.0)),
        jitter=NO_JITTER,
        label_share=share,
        optimiser=AdamW(lr=1e-3, end_lr=1e-6, warmup_ratio=0.1, layer_decay=layer_decay),
        plan=Plan(steps=steps, batch_size=_BATCH, repeat=True, log_every=50, save_every=250),
        seed=seed,
    )


Cell = Callable[[Places, Compute], dict[str, Any]]


def cells(name: str, row: Row, places: Places) -> dict[str, Cell]:
    """The cells of a row, in the order in which they can be done."""
    run = places.runs / name
    init = str(run / "pretrain") if row.target is not None else ""
    found: dict[str, Cell] = {}
    if row.target is not None:
        found["pretrain"] = lambda p, c: _go_on(pretraining(row, run / "pretrain", p), pretrain, c)
    if row.layer_decay < 1:
        found["probe"] = lambda p, c: _probe(init, p, c)
    grid = [(10, 0), (1, 0), (1, 1), (1, 2), (100, 0)]
    for percent, seed in grid if row.images == _IMAGES and row.layer_decay < 1 else grid[:1]:
        label = f"finetune-{percent}pct-{seed}"
        found[label] = _finetune_cell(row, init, run / label, percent / 100, seed)
    return found


def _probe(run: str, places: Places, compute: Compute) -> dict[str, Any]:
    """The battery on all images of train/ and test/: three seeds of validation images and few labels.

    Without a run the network is a random one, another for each seed.
    """
    train, test = (
        read_source(open_stored(str(places.cifar10 / part), 3), places.train, Log()) for part in ("train", "test")
    )
    if run:
        found = batteries(load_model(run, compute).backbone, train, test, compute, SEEDS, PROTOCOL)
        return {"seeds": {str(result.seed): result.as_dict() for result in found}}
    networks = {seed: BACKBONE.build(seed).eval().to(compute.device) for seed in SEEDS}
    found = [next(batteries(network, train, test, compute, [seed], PROTOCOL)) for seed, network in networks.items()]
    return {"seeds": {str(result.seed): result.as_dict() for result in found}}


def _finetune_cell(row: Row, init: str, out: Path, share: float, seed: int) -> Cell:
    return lambda places, compute: _go_on(
        finetuning(init, out, places, share=share, seed=seed, layer_decay=row.layer_decay), finetune, compute
    )


def _go_on(config: Any, main: Callable[..., dict[str, Any]], compute: Compute) -> dict[str, Any]:
    resume = is_run(config.out)
    if resume:
        config = replace(read_config(config.out, type(config)), out=config.out)
    return main(config, resume=resume, compute=compute) | {"resumed": resume}


def read(home: Path) -> dict[str, dict[str, Any]]:
    """The finished cells of every row."""
    found = {
        name: {path.stem: json.loads(path.read_text()) for path in sorted((home / name).glob("*.json"))}
        for name in ROWS
    }
    return {name: row for name, row in found.items() if row}


def figures(row: dict[str, Any]) -> dict[str, float]:
    """What a row is worth on test images: means over seeds where there are several."""
    probes = list(row.get("probe", {}).get("seeds", {}).values())
    found = {kind: [probe[kind] for probe in probes] for kind in ("knn", "linear")}
    for percent in (1, 10, 100):
        cells = [row[f"finetune-{percent}pct-{seed}"] for seed in SEEDS if f"finetune-{percent}pct-{seed}" in row]
        found[f"finetune_{percent}pct"] = [cell["test_accuracy"] for cell in cells]
    return {kind: sum(values) / len(values) for kind, values in found.items() if values}


def chosen(rows: dict[str, dict[str, Any]]) -> str:
    """The best pretraining of the grid, by the linear probe on validation images."""

    def validated(name: str) -> float:
        return sum(max(probe["validation"].values()) for probe in rows[name]["probe"]["seeds"].values())

    grid = [name for name in rows if "probe" in rows[name] and ROWS[name].target and ROWS[name].images == _IMAGES]
    return max(grid, key=validated)


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The best row beside the network that was never pretrained."""
    best = chosen(rows)
    return {"best": {"row": best, **figures(rows[best])}, "scratch": {"row": "random", **figures(rows["random"])}}


_COLUMNS = {
    "k-NN": "knn",
    "linear": "linear",
    "1 % of labels": "finetune_1pct",
    "10 %": "finetune_10pct",
    "100 %": "finetune_100pct",
}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """All rows as Markdown, in per cent; a dash where a cell has not ended."""
    lines = [["", "images", *_COLUMNS], ["---"] * (len(_COLUMNS) + 2)]
    for name, row in rows.items():
        found = figures(row)
        images = f"{ROWS[name].images:,}" if ROWS[name].target else "0"
        shown = [f"{100 * found[kind]:.1f}" if kind in found else "-" for kind in _COLUMNS.values()]
        lines.append([name, images, *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def slopes(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Points of accuracy for each doubling of the images of the learning curve, by least squares."""
    curve = {ROWS[name].images: figures(row) for name, row in rows.items() if name.startswith(_CURVE)}
    found = {}
    for kind in ("knn", "linear", "finetune_10pct"):
        points = [(math.log2(images), 100 * values[kind]) for images, values in curve.items() if kind in values]
        if len(points) > 1:
            found[kind] = statistics.linear_regression(*zip(*points, strict=True)).slope
    return found


def main() -> None:
    """Do the cells that are not finished, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--out", type=Path, default=HOME)
    parser.add_argument("--row", action="append")
    parser.add_argument("--cell", action="append")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    compute = choose_compute(precision="bf16")
    places = Places(given.cifar10, given.tokenizers, given.runs)
    for name in given.row or ROWS:
        for label, cell in cells(name, ROWS[name], places).items():
            target = given.out / name / f"{label}.json"
            if target.exists() or (given.cell and label not in given.cell):
                continue
            began, used = time.time(), time.process_time()
            result = cell(places, compute)
            result |= {"seconds": time.time() - began, "processor_seconds": time.process_time() - used}
            result |= {"processor": platform.machine(), "torch": torch.__version__, "compute": compute.describe()}
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(result, indent=1) + "\n")
    rows = read(given.out)
    print(table(rows), slopes(rows), sep="\n\n")
    if "random" in rows and any("probe" in row for name, row in rows.items() if ROWS[name].target):
        (given.out / "summary.json").write_text(json.dumps(summary(rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
