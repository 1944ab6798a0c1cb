"""Does pretraining help to label pixels? CamVid street scenes, one small ViT, pretrained or not, two heads.

    python benchmarks/study_camvid.py --camvid FOLDER

FOLDER holds train/, val/ and test/ with images/ and masks/: CamVid as SegNet divides it, its 480 x 360 images
re-compressed as JPEG. Tokenizer and backbone learn from the training images without their masks; a pretrained backbone
and random weights have the same head, recipe and steps. The weights are chosen on val/, test/ is looked at once.
Finished cells are left alone, those that were cut off go on where they stopped: each is a file of docs/results/camvid.
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
from study import go_on
from study_cifar10 import MUON

from smalti.core.compute import Compute, choose_compute
from smalti.core.config import to_json
from smalti.core.log import Log
from smalti.data.load import Data
from smalti.data.transforms.views import NO_JITTER, ColorJitter, RandomResizedCrop
from smalti.evaluation.supervised import ious_by_name, scores_of
from smalti.functional.masking import Blockwise
from smalti.functional.metrics import pixel_confusion
from smalti.models.segmenter import Linear, MultiLevel
from smalti.models.vit import ViT
from smalti.recipes import small
from smalti.runs import finetune, pretrain, train_tokenizer
from smalti.runs.finetune import Finetune
from smalti.runs.folder import RunFolder
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.segmentation_task import Segmentation
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.dvae import DVAE
from smalti.tokenizers.simple import KMeansPatches
from smalti.training.optim import Optimiser
from smalti.training.training_plan import Plan

HOME = Path(__file__).parent.parent / "docs" / "results" / "camvid"
NOTE = "CamVid, images re-compressed as JPEG"
CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")

BACKBONE = ViT(
    img_size=(96, 96),
    patch_size=8,
    embed_dim=128,
    depth=6,
    num_heads=4,
    drop_path_rate=0.0,
    init="xavier",
    pos_init="sincos",
)
SQUARES = Data(channels=3, side=160)
CROP = RandomResizedCrop(scale=(0.25, 1.0), ratio=(0.9, 1.11))


@dataclass(frozen=True)
class Start:
    """How a backbone is pretrained: its tokenizer, and then the network (which sees each frame many times)."""

    tokenizer: TrainTokenizer
    pretrain: Pretrain


@dataclass(frozen=True)
class Cell:
    """A fine-tuning: where it starts (a key of `starts`, or scratch), its head, and its steps of 16 images."""

    start: str
    head: str
    steps: int


def starts() -> dict[str, Start]:
    """All pretrainings, the short one first."""
    kmeans = TrainTokenizer(SQUARES, tokenizer=KMeansPatches(vocab_size=512, stride=8, in_chans=3), crop=CROP)
    dvae = replace(small.train_tokenizer(), data=SQUARES, crop=CROP, plan=Plan(steps=3000, batch_size=64))
    assert isinstance(dvae.tokenizer, DVAE)
    dvae = replace(dvae, tokenizer=replace(dvae.tokenizer, vocab_size=512))
    whitened = replace(kmeans, tokenizer=KMeansPatches(vocab_size=512, stride=8, in_chans=3, whitening=0.5))
    return {
        "kmeans-20k": Start(kmeans, as_published(20_000)),
        "kmeans-150k": Start(kmeans, as_published(150_000)),
        "muon-visible-150k": Start(whitened, muon_visible(150_000)),
        "dvae-640k": Start(dvae, as_published(640_000)),
    }


def cells() -> dict[str, Cell]:
    """All fine-tunings, those of minutes first."""
    every = [
        Cell(start, head, steps)
        for steps, names in (
            (200, ("scratch", "kmeans-20k")),
            (3000, ("scratch", "muon-visible-150k", "kmeans-150k", "dvae-640k")),
        )
        for head in ("linear", "multi-level")
        for start in names
    ]
    return {f"{cell.head}-{cell.start}-{cell.steps}": cell for cell in every}


def as_published(images: int) -> Pretrain:
    """A pretraining with mask tokens in the encoder, blocks of masked patches, and AdamW, as in BEiT."""
    return Pretrain(
        data=SQUARES,
        backbone=BACKBONE,
        masking=Blockwise(ratio=0.4),
        crop=CROP,
        jitter=NO_JITTER,
        optimiser=Optimiser(lr=2e-3, warmup_ratio=0.08, betas=(0.9, 0.98)),
        plan=Plan(steps=-(-images // 64), batch_size=64, save_every=250),
    )


def muon_visible(images: int) -> Pretrain:
    """A pretraining with the best setting of the CIFAR-10 study."""
    published = as_published(images)
    return replace(
        published,
        backbone=replace(BACKBONE, pos_amplitude=MUON.pos_amplitude),
        masking=MUON.masking,
        decoder=MUON.decoder,
        optimiser=replace(published.optimiser, lr=MUON.lr, matrices=MUON.matrices),
        plan=Plan(steps=-(-images // 128), batch_size=128, save_every=250),
    )


def fine_tuning(cell: Cell, data: Path, init: str) -> Finetune:
    """The fine-tuning of a cell: a frozen backbone below the linear head, one that learns below the other."""
    linear = cell.head == "linear"
    return Finetune(
        data=Data(path=str(data / "train"), channels=3),
        validation_data=str(data / "val"),
        test=str(data / "test"),
        init=init,
        task=Segmentation(head=Linear() if linear else MultiLevel(width=32), void=len(CLASSES)),
        backbone=replace(BACKBONE, img_size=(96, 128)),
        freeze=linear,
        crop=RandomResizedCrop(scale=(0.25, 1.0), ratio=(1.2, 1.48)),
        jitter=ColorJitter(),
        optimiser=Optimiser(
            lr=3e-3 if linear else 1e-3,
            end_lr=1e-5,
            warmup_ratio=0.1,
            betas=(0.9, 0.98),
            layer_decay=1.0 if linear else 0.75,
        ),
        plan=Plan(steps=cell.steps, batch_size=16, save_every=max(1, cell.steps // 4)),
    )


@dataclass(frozen=True)
class Study:
    """Where images are, where runs are kept, and how long they are at most."""

    data: Path
    runs: Path
    compute: Compute
    steps: int | None

    def pretrained(self, name: str) -> str:
        """The run folder of a start, which is made where it is not finished; empty for random weights."""
        if name == "scratch":
            return ""
        start = starts()[name]
        tokenizer = self.runs / f"tokenizer-{name}"
        self._run(train_tokenizer.main, replace(start.tokenizer, data=self._frames()), tokenizer)
        config = replace(start.pretrain, tokenizer=str(tokenizer), data=self._frames())
        self._run(pretrain.main, config, self.runs / name)
        return str(self.runs / name)

    def cell(self, name: str) -> dict[str, Any]:
        """Train a cell, or go on with it: what was measured, and what it took."""
        cell = cells()[name]
        init = self.pretrained(cell.start)
        began, used = time.time(), time.process_time()
        config = fine_tuning(cell, self.data, init)
        result = self._run(finetune.main, config, self.runs / name)
        spent = {"seconds": time.time() - began, "processor_seconds": time.process_time() - used}
        shown = replace(config, data=replace(config.data, path="train"), validation_data="val", test="test", init="")
        about = {"images": NOTE, "start": cell.start, "head": cell.head, "resumed": result.pop("resumed"), **spent}
        if init:
            about["pretraining"] = RunFolder(Path(init)).read_result()
        result["test_class_iou"] = dict(zip(CLASSES, result["test_class_iou"].values(), strict=True))
        return about | {"result": result, "config": to_json(shown)}

    def constant(self) -> dict[str, Any]:
        """What a guess has that says the most frequent class of the training images everywhere."""
        task, log = Segmentation(void=len(CLASSES)), Log()
        data = Data(path=str(self.data / "train"))
        config = Finetune(data=data, task=task, test=str(self.data / "test"), validation_data=str(self.data / "val"))
        parts = config.split_images(task.open(data, log, Path()), log)
        counts = {}
        for role, scenes in (("train", parts.train.train), ("test", parts.test)):
            maps = (torch.from_numpy(scenes[index].label_map) for index in range(len(scenes)))
            counts[role] = sum(
                (pixel_confusion(label_map, label_map, len(CLASSES)).diagonal() for label_map in maps),
                torch.zeros(len(CLASSES), dtype=torch.long),
            )
        table = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.long)
        table[:, int(counts["train"].argmax())] = counts["test"]
        measured = scores_of(table) | ious_by_name(table, CLASSES)
        result = {f"test_{key}": value for key, value in measured.items()}
        return {"images": NOTE, "start": "-", "head": "constant", "result": {"steps": 0, **result}}

    def _frames(self) -> Data:
        return replace(SQUARES, path=str(self.data / "train" / "images"))

    def _run(self, main: Callable[..., dict[str, Any]], config: Any, out: Path) -> dict[str, Any]:
        """Begin a run, go on with it, or read what it ended with."""
        most = config.plan.steps if self.steps is None else min(config.plan.steps, self.steps)
        return go_on(replace(config, out=str(out), plan=replace(config.plan, steps=most)), main, self.compute)


def _percent(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda cell: f"{100 * cell['result'][name]:.1f} %" if name in cell["result"] else "-"


COLUMNS: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "head": lambda cell: cell["head"],
    "start": lambda cell: cell["start"],
    "steps": lambda cell: str(cell["result"]["steps"]),
    "mIoU, val": _percent("validation_mean_iou"),
    "mIoU, test": _percent("test_mean_iou"),
    "pixel accuracy, test": _percent("test_pixel_accuracy"),
    "images": lambda cell: "re-compressed as JPEG",
}


def finished(home: Path) -> dict[str, dict[str, Any]]:
    """The results that are there, in the order of `cells`."""
    paths = {name: home / f"{name}.json" for name in ("constant", *cells())}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def main() -> None:
    """Run the cells that are not finished, and print the table."""
    parser = argparse.ArgumentParser(description="segment street scenes from pretrained and from random weights")
    parser.add_argument("--camvid", type=Path, required=True, help="a folder with train/, val/ and test/")
    parser.add_argument("--runs", type=Path, default=Path("runs/camvid"), help="where run folders are kept")
    parser.add_argument("--out", type=Path, default=HOME, help="where results are written")
    parser.add_argument(
        "--cell", action="append", choices=["constant", *cells()], help="these only; may be given again"
    )
    parser.add_argument("--steps", type=int, help="of every run at most: to try it out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="end with one JSON object of all results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    study = Study(given.camvid, given.runs, choose_compute(), given.steps)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in ("constant", *cells()):
        target = given.out / f"{name}.json"
        if target.exists() or (given.cell and name not in given.cell):
            continue
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        machine |= {"threads": given.threads, "compute": study.compute.describe()}
        found = study.constant() if name == "constant" else study.cell(name)
        target.write_text(json.dumps(found | machine, indent=1) + "\n")
        write_log(given.runs / name, target.with_suffix(".jsonl"))
    print(table(COLUMNS, finished(given.out)))
    if given.json:
        print(json.dumps(finished(given.out)))


if __name__ == "__main__":
    main()
