"""`smalti demo`: both stages on real images in minutes, then an evaluation of the network."""

import itertools
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from smalti.core.compute import Compute, Device, Precision, can_compile, choose_compute
from smalti.core.config import require, setting
from smalti.core.contracts import Batches
from smalti.core.files import require_place
from smalti.core.folder_lock import writer_lock
from smalti.core.log import Log
from smalti.data.datasets.open import EMBEDDED
from smalti.data.load import InMemoryData, affordable
from smalti.evaluation.probe import PIXELS, probe_backbone, probe_pixels, untrained
from smalti.evaluation.reconstruction import describe_training
from smalti.report.page import Section
from smalti.runs import pretrain, train_tokenizer
from smalti.runs.folder import RunFolder, create, read_kind, writing
from smalti.runs.models import load_model
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.provenance import provenance
from smalti.runs.sections import percent, pretrain_sections, probe_section, tokenizer_sections, write_page
from smalti.runs.session import removed_if_unstarted, seconds_per_step
from smalti.runs.tokenizers import load_tokenizer
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.runs.verdicts import demo_verdict
from smalti.training.targets import Pixels
from smalti.training.trainer import Trainer

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TOKENIZER_SHARE = 0.12
_REPORT_SECONDS = 15.0
"""The report and what is measured for it; of a short budget an eighth at most."""
_SHORT = 240.0
"""Below so many seconds of budget, compiling does not pay and fewer labelled images are used by the probes."""
_PROBE_IMAGES_SHORT = 8000
_MIN_STEPS = 20
_PRETRAINED = "pretrained"

Probes: TypeAlias = dict[str, dict[str, Any]]
"""Results of `probe` by the name of what was probed."""


@dataclass(frozen=True)
class Demo:
    """The demo: two recipes and the time they may take."""

    data: str = setting(EMBEDDED, "'embedded', or a folder of photographs (then without label probes)")
    budget: str = setting("10m", "time for everything: seconds, or with s, m or h")
    out: str = setting("runs/demo", "the run folder; an earlier one is moved aside")
    tokenizer_steps: int | None = setting(None, "optimiser steps; none: what the budget allows")
    pretrain_steps: int | None = setting(None, "optimiser steps; none: what the budget allows")
    probe_images: int | None = setting(None, "labelled training images that probes use; none: what the budget allows")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    tokenizer: TrainTokenizer = TrainTokenizer()
    pretrain: Pretrain = Pretrain()

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"\d+(\.\d+)?[smh]?", self.budget) is not None,
            f"a budget of '{self.budget}'",
            "use 90s or 10m",
        )
        require(self.seconds >= 20, f"a budget of {self.seconds:g} seconds", "use at least 20s")
        require(
            not isinstance(self.pretrain.target, Pixels),
            "the demo trains a tokenizer and pixels are predicted without one",
            "use smalti pretrain --target pixels",
        )

    @property
    def seconds(self) -> float:
        """The budget in seconds."""
        return float(self.budget.rstrip("smh")) * _UNITS.get(self.budget[-1], 1.0)


def main(config: Demo) -> dict[str, Any]:
    """Evaluate random networks and pixels, train tokenizer and BEiT, evaluate the network, write the report.

    Raises:
        LockError: another demo writes the folder.
    """
    began = time.monotonic()
    out = Path(config.out).expanduser()
    with removed_if_unstarted(config.out):
        require_place(out)
        _move_aside(out)
        with writing(config.out):
            return _run(config, began)


def _run(config: Demo, began: float) -> dict[str, Any]:
    folder, log = create(config.out, config), Log()
    config, images = _load(config, folder, log)
    compute = choose_compute(config.device, config.precision)
    log.say(f"smalti demo: {config.budget} on {compute.describe()}")
    labelled = config.data == EMBEDDED
    baselines, probe_seconds = _probe_baselines(config, images, compute, log) if labelled else ({}, 0.0)
    tokenizer = _tokenizer(config, images, compute, log)
    mim = _pretrain(config, images, compute, began, log, probe_seconds)
    probes = _probe_pretrained(config, images, compute, log) | baselines if labelled else {}
    result = _result(tokenizer, mim, probes)
    _write_report(config, result, images, compute)
    result["seconds"] = round(time.monotonic() - began, 1)
    folder.write_result(result)
    print(describe(result))
    print(f"\nreport: {folder.report}  ({result['seconds']:.0f} s)")
    print(f"try it: smalti serve {shlex.quote(f'{config.out}/pretrain')}")
    return result


def describe(result: Mapping[str, Any]) -> str:
    """The result as plain text: two lines and a table."""
    tokenizer, mim = result["tokenizer"], result["mim"]
    lines = [
        f"\ntokenizer   {describe_training(tokenizer)}",
        f"pretraining {mim['steps']} steps: loss {mim['loss_nats']:.2f} nats,"
        f" {mim['unigram_entropy_nats'] - mim['loss_nats']:.2f} below the unigram entropy"
        f" ({mim['unigram_entropy_nats']:.2f}); {percent(mim['accuracy'])} of masked tokens guessed",
    ]
    rows = result.get("probe", {}).get("all", {})
    if rows:
        lines.append(f"\n{'frozen features':<34} {'k-NN':>7} {'linear':>7} {'1 % labels':>11}   best layer")
    for name, row in rows.items():
        accuracies = f"{percent(row['knn']):>7} {percent(row['linear']):>7} {percent(row['linear_few']):>11}"
        lines.append(f"{name:<34} {accuracies}   {row['layer']} ({row['pooling']})")
    if rows:
        gain = result["probe"]["gain_points"]
        lines.append(f"\npretraining is worth {gain:+.1f} points of linear-probe accuracy over random initialisation")
    lines.append(f"repeat exactly with --tokenizer-steps {tokenizer['steps']} --pretrain-steps {mim['steps']}")
    return "\n".join(lines)


def _load(config: Demo, folder: RunFolder, log: Log) -> tuple[Demo, InMemoryData]:
    """All of the embedded images, or as many photographs as can be decoded in a tenth of the budget.

    Both stages get the same images, and their configurations say which.
    """
    data = replace(config.tokenizer.data, path=config.data).measured(log)
    if config.data != EMBEDDED and data.limit is None:
        data = replace(data, limit=affordable(data, seconds=0.1 * config.seconds))
    images = data.load(log, folder.bad_files)
    log.say(f"{len(images.train)} images to learn from, {len(images.held_out)} held out")
    tokenizer = replace(config.tokenizer, data=data, plan=config.tokenizer.plan.at_most(len(images.train)))
    mim = replace(config.pretrain, data=data, plan=config.pretrain.plan.at_most(len(images.train)))
    return replace(config, tokenizer=tokenizer, pretrain=mim), images


def _tokenizer(config: Demo, images: InMemoryData, compute: Compute, log: Log) -> dict[str, Any]:
    """Stage one."""
    run = replace(config.tokenizer, out=f"{config.out}/tokenizer")
    steps = config.tokenizer_steps
    if steps is None:
        trial, batches = train_tokenizer.prepare(run, images, compute)
        end = time.monotonic() + _TOKENIZER_SHARE * config.seconds
        steps = _affordable_steps(trial, batches, compute, end)
    log.say(f"stage one: {steps} steps of the image tokenizer")
    return train_tokenizer.main(replace(run, plan=replace(run.plan, steps=steps)), images=images, compute=compute)


def _pretrain(
    config: Demo, images: InMemoryData, compute: Compute, began: float, log: Log, probe_seconds: float
) -> dict[str, Any]:
    """Stage two, in the time that is not needed for the evaluation."""
    compiling = config.pretrain.compile
    if compiling == "auto":  # it takes half a minute
        pays = config.seconds >= _SHORT and can_compile(compute.device)
        compiling = "on" if pays else "off"
    run = replace(
        config.pretrain,
        tokenizer=f"{config.out}/tokenizer",
        accept_tokenizer=True,  # a demo goes on with a collapsed tokenizer; the console reports it
        out=f"{config.out}/pretrain",
        compile=compiling,
    )
    steps = config.pretrain_steps
    if steps is None:
        tokenizer = load_tokenizer(run.tokenizer, compute)
        trial, batches = pretrain.prepare(run, images, tokenizer, compute)
        end = began + config.seconds - min(_REPORT_SECONDS, config.seconds / 8) - probe_seconds
        steps = _affordable_steps(trial, batches, compute, end)
    log.say(f"stage two: {steps} steps of masked image modeling")
    return pretrain.main(replace(run, plan=replace(run.plan, steps=steps)), images=images, compute=compute)


def _affordable_steps(trial: Trainer, batches: Batches, compute: Compute, end: float) -> int:
    """The number of steps, timed on this machine, that fit before `end`, a time of `time.monotonic`."""
    step = seconds_per_step(trial, batches, compute)
    return max(_MIN_STEPS, int((end - time.monotonic()) / step))


def _probe_baselines(config: Demo, images: InMemoryData, compute: Compute, log: Log) -> tuple[Probes, float]:
    """Probes of the untrained network in both initialisations and of raw pixels; the seconds that one network takes."""
    log.say("measuring random networks and raw pixels")
    inits, seed, images = untrained(config.pretrain.backbone), config.pretrain.seed, _labelled(config, images)
    began = time.monotonic()
    probes = {name: probe_backbone(vit.build(seed).to(compute.device), images, compute) for name, vit in inits.items()}
    each = (time.monotonic() - began) / len(inits)
    return {name: asdict(found) for name, found in (probes | {PIXELS: probe_pixels(images)}).items()}, each


def _probe_pretrained(config: Demo, images: InMemoryData, compute: Compute, log: Log) -> Probes:
    """Probes of the pretrained backbone."""
    log.say("measuring the pretrained network")
    backbone = load_model(f"{config.out}/pretrain", compute).backbone
    return {_PRETRAINED: asdict(probe_backbone(backbone, _labelled(config, images), compute))}


def _labelled(config: Demo, images: InMemoryData) -> InMemoryData:
    """The images that probes are fitted and tested on."""
    short = _PROBE_IMAGES_SHORT if config.seconds < _SHORT else len(images.train)
    count = min(len(images.train), short if config.probe_images is None else config.probe_images)
    return replace(images, train=images.train.select(np.arange(count)))


def _result(tokenizer: dict[str, Any], mim: dict[str, Any], probes: Probes) -> dict[str, Any]:
    """All results. For each figure, `probe.random` is the better of the random networks."""
    result: dict[str, Any] = {"tokenizer": tokenizer, "mim": mim}
    if probes:
        random = [row for name, row in probes.items() if name not in (_PRETRAINED, PIXELS)]
        better = {key: max(row[key] for row in random) for key in ("knn", "linear", "linear_few")}
        ours = {"pretrained": probes[_PRETRAINED], "random": better, "pixels": probes[PIXELS], "all": probes}
        result["probe"] = ours | {"gain_points": 100 * (probes[_PRETRAINED]["linear"] - better["linear"])}
    return result


def _write_report(config: Demo, result: dict[str, Any], images: InMemoryData, compute: Compute) -> None:
    """Write report.html to the demo's folder."""
    sections: list[Section] = [probe_section(result["probe"]["all"])] if "probe" in result else []
    sections += pretrain_sections(f"{config.out}/pretrain", compute, images)
    sections += tokenizer_sections(f"{config.out}/tokenizer", compute, images)
    sections.append(provenance([f"{config.out}/tokenizer", f"{config.out}/pretrain"]))
    facts, text = demo_verdict(result)
    write_page(RunFolder(Path(config.out).expanduser()).report, "smalti demo", text, sections, facts)


def _move_aside(folder: Path) -> None:
    """Rename the folder of an earlier demo, so that nothing is overwritten and the command can be repeated.

    Raises:
        LockError: that demo is still running.
    """
    if (folder / "config.json").exists() and read_kind(str(folder)) == Demo.__name__:
        with writer_lock(folder):
            pass
        number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.{n}").exists())
        folder.rename(folder.with_name(f"{folder.name}.{number}"))
