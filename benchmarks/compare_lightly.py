"""MAE and SimMIM by the modules of lightly, pretrained on what our CIFAR-10 study sees and measured in the same way.

    python benchmarks/compare_lightly.py --cifar10 FOLDER
    python benchmarks/compare_lightly.py --cifar10 FOLDER --tokenizer RUN --seconds S --tokenizer-seconds T

FOLDER holds train/ and test/. A cell is one pretraining, a file of docs/results/cifar10/peers; finished ones are left
alone, and one that was cut off goes on. The first command runs the cells that see as many images as our rows. The
second also times our step beside theirs, where that has not been done (step-seconds.json), and runs those cells that
take as much processor time as our row of tokens (S seconds), and as that row and its tokenizer together (S + T). What
lightly does is in lightly_methods.py.
"""

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightly
import timm
import torch
from frozen import battery
from lightly_methods import (
    BACKBONE,
    BATCH,
    LOG_EVERY,
    MEAN,
    METHODS,
    OURS,
    SEED,
    STD,
    THEIRS,
    Method,
    Training,
    about,
    pretrain,
)
from pretrain_cifar10 import configuration
from printing import table
from safetensors.torch import load_file, save_file
from study import FINETUNING_LR, DataFiles, Row, Study, go_on, in_turn
from study_cifar10 import STUDY
from timm.layers import set_fused_attn

from smalti.core.compute import Compute, choose_compute
from smalti.core.contracts import Batch
from smalti.core.files import write_json
from smalti.core.log import Log
from smalti.data.datasets.open import open_source
from smalti.data.load import read_source
from smalti.models.vit import VisionTransformer
from smalti.runs.finetune import main as finetune
from smalti.runs.pretrain import Pretrain, prepare
from smalti.runs.tokenizers import load_tokenizer
from smalti.training.trainer import Trainer

HOME = Path(__file__).parent.parent / "docs" / "results" / "cifar10" / "peers"
BUDGETS = ("equal-images", "equal-time", "equal-time-both-stages")
CELLS = {f"{method}-{budget}": (method, budget) for budget in BUDGETS for method in METHODS}


def step_seconds(
    ours: Mapping[str, Pretrain], methods: Mapping[str, Method], compute: Compute, rounds: int
) -> dict[str, float]:
    """Processor time of a step of each pretraining of ours and of each method, in turn: the median over rounds.

    In turn, because on a busy machine the same step takes up to twice the time that it takes on a quiet one. Theirs are
    compiled where ours is.
    """
    images = next(iter(ours.values())).data.load(Log())
    compiled = any(config.compile != "off" for config in ours.values())
    steps: dict[str, Callable[[], Any]] = {}
    for name, config in ours.items():
        trainer, batches = prepare(config, images, load_tokenizer(config.tokenizer, compute), compute)
        steps[name] = partial(_step, trainer, batches, compute)
    steps |= {name: Training(method, images, rounds + 2, compute, compiled).step for name, method in methods.items()}
    return in_turn(steps, rounds)


def _step(trainer: Trainer, batches: Callable[[int], Batch], compute: Compute) -> object:
    return trainer.train_step(batches(trainer.step), compute, with_metrics=False)


def read_encoder(path: Path) -> VisionTransformer:
    """Its weights in our network, which has timm's names and computes the same."""
    backbone = BACKBONE.build()
    backbone.load_state_dict(load_file(path))
    return backbone.eval()


def fine_tune(
    init: Path, out: Path, data: Path, percent: int, study: Study, compute: Compute, lr: float = FINETUNING_LR
) -> dict[str, Any]:
    """Fine-tuning of an encoder with those labels of our rows and with their recipe; one that was cut off goes on."""
    places, share = DataFiles(data, Path(), Path()), percent / 100
    config = study.finetuning(str(init), out, places, share=share, seed=SEED, layer_decay=Row().layer_decay, lr=lr)
    return go_on(replace(config, backbone=replace(config.backbone, mean=MEAN, std=STD)), finetune, compute)


def run(
    method: Method, steps: int, folder: Path, data: Path, compute: Compute, compiled: bool, finetune_steps: int
) -> dict[str, Any]:
    """Pretrain a cell, or take its weights where that is done, and measure it as our rows are."""
    images, done = replace(OURS.data, path=str(data / "train")).load(Log()), folder / "pretrain.json"
    if not done.exists():
        training = pretrain(method, images, steps, folder, compute, compiled)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(training.model.backbone.vit.state_dict(), folder / "encoder.safetensors")
        means = [part.mean().item() for part in torch.tensor(training.losses).split(LOG_EVERY)]
        spent = {"steps": steps, "images": steps * BATCH, "processor_seconds": training.seconds, "losses": means}
        parameters = sum(weight.numel() for weight in training.model.parameters())
        write_json(done, spent | about(method) | {"parameters": parameters, "compiled": compiled})
    test = read_source(open_source(str(data / "test"), OURS.data.channels), OURS.data, Log())
    encoder = read_encoder(folder / "encoder.safetensors")
    figures = {"frozen": battery(encoder, images.train, test, compute, SEED, STUDY.protocol).as_dict()}
    out, study = folder / "finetune-10pct-0", replace(STUDY, steps=finetune_steps)
    figures["finetune-10pct-0"] = fine_tune(folder / "encoder.safetensors", out, data, 10, study, compute)
    versions = {"lightly": lightly.__version__, "timm": timm.__version__, "torch": torch.__version__}
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "compute": compute.describe()}
    return json.loads(done.read_text()) | figures | versions | machine


def steps_of(cell: str, images: int, both_stages: float | None, seconds: Mapping[str, float]) -> int | None:
    """As many images as ours, or as many steps as take the same time.

    Args:
        both_stages: what our row and its tokenizer take, divided by what the row takes alone.
        seconds: of a step, by `step_seconds`; without them there is no equal time.
    """
    (method, budget), ours = CELLS[cell], -(-images // BATCH)
    times = {"equal-images": None, "equal-time": 1.0, "equal-time-both-stages": both_stages}[budget]
    if budget == "equal-images":
        return ours
    if times is None or not seconds:
        return None
    return max(1, round(ours * times * seconds["ours"] / seconds[method.removesuffix("-our-settings")]))


COLUMNS: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "images": lambda cell: f"{cell['images']}",
    "seconds of a core": lambda cell: f"{cell['processor_seconds']:.0f}",
    "k-NN": lambda cell: _percent(cell["frozen"]["knn"]),
    "linear probe": lambda cell: _percent(cell["frozen"]["linear"]),
    "of block": lambda cell: f"{cell['frozen']['layer']} ({cell['frozen']['pooling']})",
    "linear, 1 % of labels": lambda cell: _percent(cell["frozen"]["few"]["1 %"]["accuracy"]),
    "linear, 10 %": lambda cell: _percent(cell["frozen"]["few"]["10 %"]["accuracy"]),
    "fine-tuned, 10 %": lambda cell: (
        _percent(cell["finetune-10pct-0"]["test_accuracy"]) if "finetune-10pct-0" in cell else "-"
    ),
}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def finished(home: Path) -> dict[str, dict[str, Any]]:
    """The results that are there, in the order of `CELLS`."""
    return {name: json.loads(path.read_text()) for name in CELLS if (path := home / f"{name}.json").exists()}


def main() -> None:
    """Run the cells that are not finished, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help="a folder with train/ and test/")
    parser.add_argument("--runs", type=Path, default=Path("runs/peers"), help="where encoders are kept")
    parser.add_argument("--out", type=Path, default=HOME, help="where results are written")
    parser.add_argument("--cell", action="append", choices=list(CELLS), help="these only; may be given again")
    parser.add_argument("--images", type=int, default=300_000, help="that our rows see")
    parser.add_argument("--tokenizer", help="the run folder of our tokenizer, to time our step beside theirs")
    parser.add_argument("--rounds", type=int, default=40, help="of that timing")
    parser.add_argument("--seconds", type=float, help="of processor time that our row took without its tokenizer")
    parser.add_argument("--tokenizer-seconds", type=float, help="of processor time that its tokenizer took")
    parser.add_argument("--finetune-steps", type=int, default=STUDY.steps, help="with a tenth of the labels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="bf16", help="auto: the faster here")
    parser.add_argument("--no-compile", action="store_true", help="for very short runs")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    set_fused_attn(False)
    compute, compiled = choose_compute(precision=given.precision), not given.no_compile
    timed = given.out / "step-seconds.json"
    if given.tokenizer and not timed.exists():
        config = configuration(given.cifar10, given.tokenizer, Path())
        config = replace(config, compile="on" if compiled else "off")
        write_json(timed, step_seconds({"ours": config}, THEIRS, compute, given.rounds))
    both = 1 + given.tokenizer_seconds / given.seconds if given.seconds and given.tokenizer_seconds else None
    seconds = json.loads(timed.read_text()) if timed.exists() else {}
    for name in given.cell or CELLS:
        steps, target = steps_of(name, given.images, both, seconds), given.out / f"{name}.json"
        if steps is not None and not target.exists():
            method = METHODS[CELLS[name][0]]
            folder = given.runs / name
            found = run(method, steps, folder, given.cifar10, compute, compiled, given.finetune_steps)
            write_json(target, found)
    print(table(COLUMNS, finished(given.out)))


if __name__ == "__main__":
    main()
