"""How good tokenizers become in minutes on a CPU: the discrete VAE, its alternatives, and settings that collapse.

    python benchmarks/study_tokenizers.py --cifar10 FOLDER --photographs FOLDER

FOLDER holds train/ and test/. Training sees train/ alone; every figure is of test/, which chose nothing. A cell is a
run of a fixed processor time (its steps follow from the speed of the first ones), so that other processes do not change
what it reaches. Cells that were cut off go on where they stopped; finished ones are left alone: each is a
file of docs/results/tokenizers, with its configuration, the figures of `smalti evaluate`, and the verdict of the gate
before stage two; beside it lies the log of the run, thinned out.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from logs import write_log
from printing import table

from smalti.core.compute import Compute, choose_compute
from smalti.core.config import to_json
from smalti.core.errors import RefusedError
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.datasets.open import open_source
from smalti.data.load import Data, InMemoryData, read_source
from smalti.evaluation.reconstruction import evaluate_tokenizer
from smalti.evaluation.token_sample import some_images
from smalti.recipes import fsq, kmeans, random_projection, small, vq
from smalti.runs.folder import is_run, read_config
from smalti.runs.pretraining_checks import gate
from smalti.runs.session import seconds_per_step
from smalti.runs.tokenizers import load_tokenizer
from smalti.runs.train_tokenizer import main as train_tokenizer
from smalti.runs.train_tokenizer import prepare
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.dvae import DVAE
from smalti.tokenizers.quantised import FSQ
from smalti.tokenizers.simple import KMeansPatches

HOME = Path(__file__).parent.parent / "docs" / "results" / "tokenizers"


@dataclass(frozen=True)
class Cell:
    """One run: its images ('cifar10' or 'photographs'), its configuration, and its processor time in minutes."""

    images: str
    config: TrainTokenizer
    minutes: float


def cells() -> dict[str, Cell]:
    """All of them, cheap ones first."""
    dvae, scalar = cifar10(small.train_tokenizer()), fsq.train_tokenizer()
    assert isinstance(dvae.tokenizer, DVAE)
    assert isinstance(scalar.tokenizer, FSQ)
    patches = kmeans.train_tokenizer()
    assert isinstance(patches.tokenizer, KMeansPatches)
    whitened = replace(patches.tokenizer, whitening=0.5)
    eight, wide = replace(patches, data=Data(channels=3, side=64)), replace(whitened, stride=8)
    larger = replace(dvae.tokenizer, vocab_size=8192)
    eight_thousand = replace(scalar.tokenizer, levels=(8, 8, 5, 5, 5))
    paper = replace(dvae.relaxation, beta=6.6)
    none = replace(dvae.relaxation, beta=0.0, spread=0.0)
    # The sum over the batch and its positions in the place of their mean, as in the public trainers of such tokenizers.
    positions = dvae.plan.batch_size * (dvae.data.side // dvae.tokenizer.stride) ** 2
    wrong_units = replace(none, beta=6.6 * positions)
    return {
        "kmeans-1024": Cell("cifar10", patches, 0),
        "kmeans-1024-whitened-50": Cell("cifar10", replace(patches, tokenizer=whitened), 0),
        "random-projection-1024": Cell("cifar10", random_projection.train_tokenizer(), 0),
        "vq-1024": Cell("cifar10", vq.train_tokenizer(), 5),
        "fsq-1000": Cell("cifar10", scalar, 3),
        "fsq-8000": Cell("cifar10", replace(scalar, tokenizer=eight_thousand), 5),
        "dvae-1024": Cell("cifar10", dvae, 10),
        "dvae-1024-beta-6.6": Cell("cifar10", replace(dvae, relaxation=paper), 10),
        "collapse-no-remedy": Cell("cifar10", replace(dvae, relaxation=none, init_images=0), 2),
        "collapse-kl-in-wrong-units": Cell("cifar10", replace(dvae, relaxation=wrong_units, init_images=0), 2),
        "photographs-64": Cell("photographs", replace(small.train_tokenizer(), data=Data(channels=3, side=64)), 10),
        "photographs-64-kmeans-whitened-50": Cell("photographs", replace(eight, tokenizer=wide), 0),
        "photographs-1024": Cell("photographs", small.train_tokenizer(), 45),
        "dvae-8192": Cell("cifar10", replace(dvae, tokenizer=larger), 45),
    }


def cifar10(config: TrainTokenizer) -> TrainTokenizer:
    """A recipe for photographs, for pictures of 32 x 32 pixels with 64 visual tokens each."""
    assert isinstance(config.tokenizer, DVAE)
    return replace(config, data=Data(channels=3, side=32), tokenizer=replace(config.tokenizer, stride=4))


def run(cell: Cell, folder: Path, data: Path, compute: Compute, steps: int = 0) -> dict[str, Any]:
    """Train a cell, or go on with it, and measure it on the test images; `steps`, if given, whatever time they take."""
    log = Log()
    resume = is_run(str(folder))
    config = read_config(str(folder), TrainTokenizer) if resume else replace(cell.config, out=str(folder))
    config = replace(config, data=replace(config.data, path=str(data / "train")))
    images = config.data.load(log)
    if not resume:
        steps = steps or steps_for(cell.minutes, config, images, compute)
        config = replace(config, plan=replace(config.plan, steps=steps))
    began, used = time.time(), time.process_time()
    held_out = train_tokenizer(config, resume=resume, images=images, compute=compute)
    spent = {"seconds": time.time() - began, "processor_seconds": time.process_time() - used}
    test = read_source(open_source(str(data / "test"), config.data.channels), config.data, log)
    about = {"minutes": cell.minutes, "threads": torch.get_num_threads(), "steps": config.planned_steps, **spent}
    shown = replace(config, out="", data=replace(config.data, path=f"{cell.images}/train"))
    measured = measure(config, str(folder), images, test, compute)
    return {
        "images": cell.images,
        "resumed": resume,
        **about,
        **measured,
        "held_out": held_out,
        "config": to_json(shown),
    }


def steps_for(minutes: float, config: TrainTokenizer, images: InMemoryData, compute: Compute) -> int:
    """Optimiser steps that take so much processor time."""
    if config.planned_steps == 0:
        return config.plan.steps
    seconds = seconds_per_step(*prepare(config, images, compute), compute, clock=time.process_time)
    return max(1, round(60 * minutes / seconds))


def measure(
    config: TrainTokenizer, model: str, images: InMemoryData, test: InMemoryDataset, compute: Compute
) -> dict[str, Any]:
    """The figures on test images, and what the gate says."""
    tokenizer, train = load_tokenizer(model, compute), some_images(images.train, config.data.side)
    density = config.likelihood == "logit_laplace"
    figures = evaluate_tokenizer(tokenizer, test.images, compute, train=train, density=density).as_dict()
    try:
        gate(tokenizer, test.images, train, compute, Log())
        verdict = "passed"
    except RefusedError as error:
        verdict = f"refused: {error.what}"
    return {"vocab_size": tokenizer.vocab_size, "test": figures, "gate": verdict}


COLUMNS: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "minutes": lambda cell: f"{cell['minutes']:g}",
    "steps": lambda cell: f"{cell['steps']}",
    "used": lambda cell: f"{100 * cell['test']['codebook_usage']:.1f} %",
    "perplexity": lambda cell: f"{cell['test']['perplexity']:.0f}",
    "of V": lambda cell: f"{cell['test']['perplexity'] / cell['vocab_size']:.2f}",
    "k-means": lambda cell: f"{cell['test']['kmeans_perplexity']:.0f}",
    "top code": lambda cell: f"{100 * cell['test']['top_share']:.1f} %",
    "PSNR": lambda cell: f"{cell['test']['psnr_db']:.2f} dB",
    "soft - hard": lambda cell: _or_dash(cell["test"]["hard_soft_gap_db"], "{:.2f} dB"),
    "SSIM": lambda cell: f"{cell['test']['ssim']:.3f}",
    "bits a dimension": lambda cell: _or_dash(cell["test"]["bits_per_dim"], "{:.3f}"),
    "gate": lambda cell: cell["gate"].split(":")[0],
}


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def finished(home: Path) -> dict[str, dict[str, Any]]:
    """The results that are there, in the order of `cells`."""
    paths = {name: home / f"{name}.json" for name in cells()}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def main() -> None:
    """Run the cells that are not finished, and print the table."""
    parser = argparse.ArgumentParser(description="train and measure tokenizers, a file of results for each")
    parser.add_argument("--cifar10", type=Path, help="a folder with train/ and test/")
    parser.add_argument("--photographs", type=Path, help="the same, of larger photographs")
    parser.add_argument("--runs", type=Path, default=Path("runs/tokenizers"), help="where run folders are kept")
    parser.add_argument("--out", type=Path, default=HOME, help="where results are written")
    parser.add_argument("--cell", action="append", choices=list(cells()), help="these only; may be given again")
    parser.add_argument("--minutes", type=float, help="of processor time, in the place of the cell's own")
    parser.add_argument("--steps", type=int, default=0, help="in the place of what fits into the minutes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="end with one JSON object of all results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folders, compute = {"cifar10": given.cifar10, "photographs": given.photographs}, choose_compute()
    given.out.mkdir(parents=True, exist_ok=True)
    for name, cell in cells().items():
        target, data = given.out / f"{name}.json", folders[cell.images]
        if data is None or target.exists() or (given.cell and name not in given.cell):
            continue
        planned = cell if given.minutes is None else replace(cell, minutes=min(cell.minutes, given.minutes))
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        found = run(planned, given.runs / name, data, compute, given.steps) | machine | {"compute": compute.describe()}
        write_log(given.runs / name, given.out / f"{name}.jsonl")
        target.write_text(json.dumps(found, indent=1) + "\n")
    print(table(COLUMNS, finished(given.out)))
    if given.json:
        print(json.dumps(finished(given.out)))


if __name__ == "__main__":
    main()
