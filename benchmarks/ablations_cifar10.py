"""Which settings of an encoder of visible patches learn most? CIFAR-10, one setting changed at a time.

    python benchmarks/ablations_cifar10.py --cifar10 FOLDER --tokenizers RUNS
    python benchmarks/search_lightly.py --cifar10 FOLDER

FOLDER holds train/ and test/, RUNS the run folders of study_tokenizers.py. Each variation is a pretraining of 150 000
images, half of a row of study_cifar10.py, and a shorter battery on frozen features (`PROTOCOL`); its
result is a file of docs/results/cifar10/ablations, and finished ones are left alone. The second command does the same
for MAE of lightly, so that it is compared at a setting that was searched as ours was.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from frozen import battery
from study import DataFiles, Row
from study_cifar10 import MUON, STUDY

from smalti.core.compute import Compute, choose_compute
from smalti.core.files import write_json
from smalti.core.log import Log
from smalti.data.datasets.open import open_source
from smalti.data.load import InMemoryData, read_source
from smalti.data.transforms.views import RandomResizedCrop
from smalti.evaluation.battery import Battery, BatteryResult
from smalti.functional.masking import Random
from smalti.models.decoder import CrossAttention
from smalti.models.vit import VisionTransformer
from smalti.runs.models import load_model
from smalti.runs.pretrain import main as pretrain
from smalti.runs.pretrain_config import Pretrain
from smalti.training.optim import Matrices
from smalti.training.targets import Pixels, Tokens

HOME = Path(__file__).parent.parent / "docs" / "results" / "cifar10" / "ablations"
IMAGES = 150_000
PROTOCOL = replace(STUDY.protocol, poolings=("2x2",), draws=1, selection_images=5000)
"""Of a tenth of the time: the best pooling of every row of the study, layers chosen on fewer images, one draw."""


@dataclass(frozen=True)
class Variation:
    """What differs between two pretrainings; the first of `VARIATIONS` has none of it."""

    target: Tokens | Pixels = Tokens()
    tokenizer: str = "kmeans-1024"
    ratio: float = 0.75
    decoder: CrossAttention = CrossAttention()
    lr: float = 2e-3
    crop: float = 0.4
    batch_size: int = 128
    masks_per_image: int = 1
    pos_amplitude: float = 0.1
    matrices: Matrices = "adamw"
    second_tokenizer: str = ""
    seed: int = 0

    def pretraining(self, out: Path, places: DataFiles, images: int) -> Pretrain:
        """The pretraining of the study with these settings."""
        row = Row(
            self.target,
            Random(ratio=self.ratio),
            self.tokenizer,
            images,
            decoder=self.decoder,
            lr=self.lr,
            matrices=self.matrices,
            pos_amplitude=self.pos_amplitude,
        )
        config = STUDY.pretraining(row, out, places)
        return replace(
            config,
            crop=RandomResizedCrop(scale=(self.crop, 1.0)),
            plan=replace(config.plan, batch_size=self.batch_size, steps=images // self.batch_size),
            masks_per_image=self.masks_per_image,
            second_tokenizer=str(places.tokenizers / self.second_tokenizer) if self.second_tokenizer else "",
            seed=self.seed,
            reference=False,
        )


WITH_ADAMW = Variation(tokenizer="kmeans-1024-whitened-50", pos_amplitude=1.0)
"""Of those that were tried in 816 core-seconds (equal_time/settings) the one that is ahead of MAE in every column."""
BEST = replace(WITH_ADAMW, lr=MUON.lr, matrices=MUON.matrices)
"""The same with Muon (docs/log.md, 30 November 2026)."""
VARIATIONS = {
    "visible": Variation(),
    "lr-4e-3": Variation(lr=4e-3),
    "whitened-50": Variation(tokenizer="kmeans-1024-whitened-50"),
    "predicted-50": Variation(decoder=CrossAttention(predicted=0.5)),
    "whitened-lr-predicted": Variation(
        tokenizer="kmeans-1024-whitened-50", lr=4e-3, decoder=CrossAttention(predicted=0.5)
    ),
    "whitened-positions": WITH_ADAMW,
    "whitened-positions-lr-4e-3": replace(WITH_ADAMW, lr=4e-3),
    "whitened-positions-masked-85": replace(WITH_ADAMW, ratio=0.85),
    "whitened-positions-crop-20": replace(WITH_ADAMW, crop=0.2),
    "features-of-816": replace(WITH_ADAMW, tokenizer="features-of-816"),
    "positions": Variation(pos_amplitude=1.0),
    "muon": BEST,
    "muon-features-of-7200": replace(BEST, tokenizer="features-of-7200"),
    "muon-features-and-pixels": replace(BEST, second_tokenizer="features-of-7200"),
    "muon-pixels": replace(BEST, target=Pixels(), tokenizer=""),
    "muon-depth-2": replace(BEST, decoder=CrossAttention(depth=2)),
    "muon-masks-4": replace(BEST, masks_per_image=4),
    "muon-mixture": replace(BEST, decoder=CrossAttention(mix_layers=True)),
    "muon-masked-60": replace(BEST, ratio=0.6),
    "muon-crop-20": replace(BEST, crop=0.2),
    "muon-predicted-50": replace(BEST, decoder=CrossAttention(predicted=0.5)),
    "muon-lr-4e-3": replace(BEST, lr=4e-3),
    "muon-lr-8e-3": replace(BEST, lr=8e-3),
    "muon-depth-4": replace(BEST, decoder=CrossAttention(depth=4)),
    "muon-masks-2": replace(BEST, masks_per_image=2),
    "muon-masked-85": replace(BEST, ratio=0.85),
    "muon-predicted-25": replace(BEST, decoder=CrossAttention(predicted=0.25)),
    "muon-width-64": replace(BEST, decoder=CrossAttention(width=64)),
    "muon-width-256": replace(BEST, decoder=CrossAttention(width=256)),
    "muon-batch-256": replace(BEST, batch_size=256),
}
"""With AdamW, then with Muon."""


def run(variation: Variation, out: Path, places: DataFiles, compute: Compute, images: InMemoryData) -> dict[str, Any]:
    """Pretrain with a variation, and measure its frozen features."""
    began = time.process_time()
    config = variation.pretraining(out, places, IMAGES)
    result = pretrain(config, images=images, compute=compute)
    seconds = time.process_time() - began
    frozen = frozen_features(load_model(str(out), compute).backbone, places, images, compute, PROTOCOL)
    found = {"variation": asdict(variation), "images": IMAGES, "processor_seconds": seconds, "frozen": frozen.as_dict()}
    loss = "pixel_loss" if isinstance(variation.target, Pixels) else "loss_nats"
    return found | {loss: result[loss], "compute": compute.describe(), "torch": torch.__version__}


def frozen_features(
    backbone: VisionTransformer, places: DataFiles, images: InMemoryData, compute: Compute, protocol: Battery
) -> BatteryResult:
    """The battery on the training images and those of test/."""
    test = read_source(open_source(str(places.images / "test"), 3), STUDY.data(places), Log())
    return battery(backbone, images.train, test, compute, 0, protocol)


def table(results: Mapping[str, dict[str, Any]]) -> str:
    """All finished variations as Markdown."""
    lines = ["| | k-NN | linear probe | of block | linear, 10 % of labels | linear, 1 % | core-seconds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, found in results.items():
        frozen, few = found["frozen"], found["frozen"]["few"]
        shares = (frozen["knn"], frozen["linear"], few["10 %"]["accuracy"], few["1 %"]["accuracy"])
        knn, linear, tenth, hundredth = (f"{100 * share:.1f}" for share in shares)
        block = f"{frozen['layer']} ({frozen['pooling']})"
        lines.append(
            f"| {name} | {knn} | {linear} | {block} | {tenth} | {hundredth} | {found['processor_seconds']:.0f} |"
        )
    return "\n".join(lines)


def finished(home: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The results that are there."""
    paths = {name: home / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def all_finished(home: Path) -> dict[str, dict[str, Any]]:
    """Our variations that are there, then the settings of MAE."""
    return finished(home, VARIATIONS) | finished(home, sorted(path.stem for path in home.glob("mae*.json")))


def keep(home: Path, name: str, measured: Callable[[], dict[str, Any]]) -> None:
    """Measure and write a result, unless it is there."""
    target = home / f"{name}.json"
    if not target.exists():
        home.mkdir(parents=True, exist_ok=True)
        write_json(target, measured())
        print(f"written: {target}", flush=True)


def main() -> None:
    """Run the variations that are not finished, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help="a folder with train/ and test/")
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--out", type=Path, default=HOME)
    parser.add_argument("--variation", action="append", choices=list(VARIATIONS), help="these only")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="bf16", help="auto: the faster here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    compute = choose_compute(precision=given.precision)
    places = DataFiles(given.cifar10, given.tokenizers, given.runs)
    images = STUDY.data(places).load(Log())
    for name in given.variation or VARIATIONS:
        out = given.runs / name
        keep(given.out, name, partial(run, VARIATIONS[name], out, places, compute, images))
    print(table(all_finished(given.out)))


if __name__ == "__main__":
    main()
