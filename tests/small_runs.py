"""Whole runs that take a second: pictures of two classes, and the command line with tiny networks."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smalti.cli import main
from smalti.training.trainer import Trainer

CPU = ["--device", "cpu", "--precision", "fp32"]
FEWEST = [*CPU, "--no-baselines", "--draws", "1", "--poolings", "mean"]
"""Of `evaluate` where probes are not what a test is about: they take seconds, and most of them are baselines."""
_DATA = ["--data.side", "16", "--data.held-out", "0.2"]
_TOKENIZER = ["--tokenizer.vocab-size", "16", "--tokenizer.stride", "4", "--tokenizer.width", "8"]
_VIT = [
    "--backbone.patch-size",
    "4",
    "--backbone.embed-dim",
    "16",
    "--backbone.depth",
    "2",
    "--backbone.num-heads",
    "2",
]
_BACKBONE = ["--backbone.img-size", "16", "16", *_VIT, "--compile", "off"]
_PLAN = ["--plan.batch-size", "16", "--plan.log-every", "1", "--plan.repeat"]

TOKENIZER_FLAGS = [*CPU, *_DATA, *_TOKENIZER, *_PLAN]
FINETUNE_FLAGS = [*CPU, *_DATA, *_BACKBONE, *_PLAN, "--validation", "0.25"]
PUBLISHED = ["--decoder", "linear", "--masking", "blockwise", "--masking.ratio", "0.4", "--optimiser.matrices", "adamw"]
"""BEiT as published, whatever the recipe has; a later flag wins."""
PRETRAIN_FLAGS = [*CPU, *_DATA, *_BACKBONE, *_PLAN, *PUBLISHED, "--optimiser.lr", "2e-3"]
DEMO_FLAGS = [
    *CPU,
    *(f"--tokenizer.{flag[2:]}" if flag.startswith("--") else flag for flag in [*_DATA, *_TOKENIZER, *_PLAN]),
    *(f"--pretrain.{flag[2:]}" if flag.startswith("--") else flag for flag in [*_DATA, *_BACKBONE, *_PLAN]),
]


def picture(number: int, across: bool, side: int = 24) -> Image.Image:
    """Stripes, across or down, with noise."""
    rng = np.random.default_rng([number, across])
    rows, columns = np.mgrid[:side, : side + 6]
    stripes = ((columns if across else rows) + rng.integers(9)) // rng.integers(2, 5) % 2
    pixels = 60 + 120 * stripes[..., None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 12, (*stripes.shape, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


DYING = """
import os, signal

def dying(function, calls):
    def call(*arguments):
        nonlocal calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call
"""
"""Of programs that kill themselves: `dying` is a function that can be called so often, and no more."""


def pictures(folder: Path, per_class: int = 16, side: int = 24) -> Path:
    """A folder with the class folders `across` and `down`."""
    for across, name in ((True, "across"), (False, "down")):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            picture(number, across, side).save(folder / name / f"{number:02d}.png")
    return folder


def flat_pictures(folder: Path, count: int = 8) -> Path:
    """A folder without class folders."""
    folder.mkdir(parents=True)
    for number in range(count):
        picture(number, across=True).save(folder / f"{number:02d}.png")
    return folder


def train_tokenizer(data: Path | str, out: Path, steps: int = 4, *flags: str) -> int:
    """`smalti train-tokenizer` with a tiny tokenizer; the exit code."""
    given = ["--data", str(data), "--out", str(out), "--plan.steps", str(steps), *flags]
    return main(["train-tokenizer", "tiny", *TOKENIZER_FLAGS, *given])


def pretrain(data: Path | str, tokenizer: Path | str, out: Path, steps: int = 4, *flags: str) -> int:
    """`smalti pretrain` with a tiny backbone; the exit code."""
    given = ["--data", str(data), "--tokenizer", str(tokenizer), "--out", str(out), "--plan.steps", str(steps), *flags]
    return main(["pretrain", "tiny", *PRETRAIN_FLAGS, *given])


def finetune(data: Path | str, init: Path | str, out: Path, steps: int = 4, *flags: str) -> int:
    """`smalti finetune` with a tiny backbone; the exit code."""
    given = ["--data", str(data), "--init", str(init), "--out", str(out), "--plan.steps", str(steps), *flags]
    return main(["finetune", "tiny", *FINETUNE_FLAGS, *given])


def scenes(folder: Path, count: int = 12, seed: int = 0, size: tuple[int, int] = (24, 32)) -> Path:
    """Photographs of boxes with masks: 0 around, 1 where it is red, 2 where it is blue, 11 (void) in the first rows."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        ids = np.zeros(size, np.uint8)
        top, left = (int(rng.integers(0, side // 2)) for side in size)
        ids[top : top + size[0] // 2, left : left + size[1] // 2] = 1 + number % 2
        pixels = np.array([[40, 40, 40], [200, 60, 60], [60, 60, 200]])[ids] + rng.normal(0, 8, (*size, 3))
        ids[:2] = 11
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number:02d}.png")
        Image.fromarray(ids).save(folder / "masks" / f"{number:02d}.png")
    return folder


def segment(data: Path | str, init: Path | str, out: Path, steps: int = 4, *flags: str) -> int:
    """`smalti finetune --task segmentation` with a tiny backbone and head; the exit code."""
    head = ["--task.void", "11", "--task.head.width", "8"]
    return finetune(data, init, out, steps, "--task", "segmentation", *head, *flags)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def result(run: Path) -> dict[str, Any]:
    """result.json."""
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def newest_checkpoint(run: Path) -> Path:
    """The folder of the last step that was saved."""
    return max((run / "checkpoints").iterdir())


def weights(run: Path) -> dict[str, bytes]:
    """Every file of the newest checkpoint."""
    return {path.name: path.read_bytes() for path in sorted(newest_checkpoint(run).iterdir())}


@contextmanager
def interrupted_before(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C as soon as `step` steps are done."""
    whole = Trainer.train_step

    def train_step(trainer: Trainer, *arguments: Any, **named: Any) -> Any:
        if trainer.step == step:
            raise KeyboardInterrupt
        return whole(trainer, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        yield
