"""What the studies of pretraining share: rows, their cells, and going on where one was cut off.

A study is a file of its own (study_cifar10.py, study_grocery.py) with its images, its network and its rows. cells.py
does its cells, results.py shows what they found.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias

from frozen import batteries

from smalti.core.compute import Compute
from smalti.core.config import to_json
from smalti.core.log import Log
from smalti.data.datasets.open import open_source
from smalti.data.load import Data, read_source
from smalti.data.transforms.batch_transforms import Mixing
from smalti.data.transforms.views import NO_JITTER, RandomResizedCrop
from smalti.evaluation.battery import Battery
from smalti.functional.masking import Blockwise, Random
from smalti.models.decoder import CrossAttention, Linear
from smalti.models.vit import ViT
from smalti.runs.classification_task import Classification
from smalti.runs.finetune import Finetune
from smalti.runs.finetune import main as finetune
from smalti.runs.folder import is_run, read_config
from smalti.runs.models import load_model
from smalti.runs.pretrain import main as pretrain
from smalti.runs.pretrain_config import Pretrain
from smalti.training.optim import Matrices, Optimiser
from smalti.training.targets import Pixels, Tokens
from smalti.training.training_plan import Plan

RESULTS = Path(__file__).parent.parent / "docs" / "results"
IMAGES = 300_000
SEEDS = (0, 1, 2)
FINETUNING_LR = 1e-3
_BATCH = 128


@dataclass(frozen=True)
class Row:
    """A way of pretraining: what is predicted, and where. Without a target there is none.

    Attributes:
        layer_decay: of fine-tuning.
        lr, matrices: learning rate of pretraining, and the optimiser of the matrices of blocks.
        pos_amplitude: with which positions start.
    """

    target: Tokens | Pixels | None = None
    masking: Blockwise | Random = Blockwise(ratio=0.4)
    tokenizer: str = ""
    images: int = IMAGES
    layer_decay: float = 0.8
    decoder: Linear | CrossAttention = Linear()
    lr: float = 2e-3
    matrices: Matrices = "adamw"
    pos_amplitude: float = 0.1

    @property
    def compared(self) -> bool:
        """Whether it has the images, masked patches, decoder and layer decay of others: the best is one of these."""
        usual = Row()
        here, there = ((row.images, row.masking.ratio, row.layer_decay, row.decoder) for row in (self, usual))
        return here == there


class DataFiles(NamedTuple):
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

    def data(self, places: DataFiles) -> Data:
        """Training images; a twentieth is held out, for the loss of pretraining and, without others, for choices."""
        return Data(path=str(places.images / "train"), channels=3, side=self.backbone.img_size[0])

    def pretraining(self, row: Row, out: Path, places: DataFiles) -> Pretrain:
        """The pretraining of a row."""
        assert row.target is not None
        return Pretrain(
            data=self.data(places),
            tokenizer=str(places.tokenizers / row.tokenizer) if row.tokenizer else "",
            out=str(out),
            backbone=replace(self.backbone, pos_amplitude=row.pos_amplitude),
            masking=row.masking,
            decoder=row.decoder,
            target=row.target,
            crop=RandomResizedCrop(scale=(0.4, 1.0)),
            jitter=NO_JITTER,
            optimiser=Optimiser(lr=row.lr, warmup_ratio=0.08, betas=(0.9, 0.98), matrices=row.matrices),
            plan=Plan(steps=-(-row.images // _BATCH), batch_size=_BATCH, log_every=50, save_every=250),
        )

    def finetuning(
        self,
        init: str,
        out: Path,
        places: DataFiles,
        *,
        share: float,
        seed: int,
        layer_decay: float,
        lr: float = FINETUNING_LR,
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
            optimiser=Optimiser(lr=lr, end_lr=1e-6, warmup_ratio=0.1, layer_decay=layer_decay),
            plan=Plan(steps=steps, batch_size=_BATCH, repeat=True, log_every=50, save_every=250),
            seed=seed,
        )

    def cells(self, name: str, places: DataFiles) -> dict[str, Cell]:
        """The cells of a row, in the order in which they can be done."""
        row = self.rows[name]
        found: dict[str, Cell] = {}
        if row.target is not None:
            found["pretrain"] = partial(self._pretrain, name, places)
        if row.layer_decay < 1:
            found["probe"] = partial(self._probe, name, places)
        grid = [(10, 0), (1, 0), (1, 1), (1, 2), (100, 0)]
        for percent, seed in grid if row.compared else grid[:1]:
            found[f"finetune-{percent}pct-{seed}"] = partial(self._finetune, name, percent, seed, places)
        return found

    def _pretrain(self, name: str, places: DataFiles, compute: Compute) -> dict[str, Any]:
        def configured(places: DataFiles) -> Pretrain:
            return self.pretraining(self.rows[name], places.runs / name / "pretrain", places)

        return self._go_on(configured, pretrain, places, compute)

    def _pretrained(self, name: str, places: DataFiles) -> str:
        """The run folder of a row's pretraining; empty where there is none."""
        return str(places.runs / name / "pretrain") if self.rows[name].target else ""

    def _finetune(self, name: str, percent: int, seed: int, places: DataFiles, compute: Compute) -> dict[str, Any]:
        def configured(places: DataFiles) -> Finetune:
            init, out = self._pretrained(name, places), places.runs / name / f"finetune-{percent}pct-{seed}"
            layer_decay = self.rows[name].layer_decay
            return self.finetuning(init, out, places, share=percent / 100, seed=seed, layer_decay=layer_decay)

        return self._go_on(configured, finetune, places, compute)

    def _go_on(
        self,
        configured: Callable[[DataFiles], Any],
        main: Callable[..., dict[str, Any]],
        places: DataFiles,
        compute: Compute,
    ) -> dict[str, Any]:
        """The result of a run and its configuration, with names for where things are."""
        shown = configured(DataFiles(Path(self.name), Path("tokenizers"), Path("runs")))
        return go_on(configured(places), main, compute) | {"config": to_json(shown)}

    def _probe(self, name: str, places: DataFiles, compute: Compute) -> dict[str, Any]:
        """The battery on all images of train/ and test/: three seeds of validation images and few labels.

        Without pretraining the network is a random one, another for each seed.
        """
        run = self._pretrained(name, places)
        data = self.data(places)
        train, test = (
            read_source(open_source(str(places.images / part), 3), data, Log()) for part in ("train", "test")
        )
        if run:
            found = batteries(load_model(run, compute).backbone, train, test, compute, SEEDS, self.protocol)
            return {"seeds": {str(result.seed): result.as_dict() for result in found}}
        networks = {seed: self.backbone.build(seed).eval().to(compute.device) for seed in SEEDS}
        each = [next(batteries(network, train, test, compute, [s], self.protocol)) for s, network in networks.items()]
        return {"seeds": {str(result.seed): result.as_dict() for result in each}}


def study_parser(description: str | None, out: Path, rounds: int) -> argparse.ArgumentParser:
    """The options that studies of equal time share; their runs are kept in runs/, under the name of `out`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="a folder with train/ and test/")
    parser.add_argument("--tokenizers", type=Path)
    parser.add_argument("--page", action="store_true", help="bring page and means up to date, and do nothing else")
    parser.add_argument("--runs", type=Path, default=Path("runs") / out.name)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--rounds", type=int, default=rounds, help="of timing a step")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="bf16", help="auto: the faster here")
    return parser


def in_turn(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Processor seconds of each, the median over the rounds after two to warm up."""
    times = defaultdict[str, list[float]](list)
    for _ in range(rounds + 2):
        for name, step in steps.items():
            began = time.process_time()
            step()
            times[name].append(time.process_time() - began)
    return {name: median(taken[2:]) for name, taken in times.items()}


def go_on(config: Any, main: Callable[..., dict[str, Any]], compute: Compute) -> dict[str, Any]:
    """Begin a run, or go on with the one in its folder: its result, and whether it went on."""
    resume = is_run(config.out)
    if resume:
        config = replace(read_config(config.out, type(config)), out=config.out)
    return main(config, resume=resume, compute=compute) | {"resumed": resume}
