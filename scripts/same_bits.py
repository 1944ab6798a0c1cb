"""Short runs of every kind, each as one digest of its last weights and its losses, which a refactoring must not change.

    python scripts/same_bits.py > before.json
    python scripts/same_bits.py --against before.json

Digests hold on one machine, with one torch. Only the command line is used, so modules may be renamed in between.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import deserialize

_CPU = ("--device", "cpu", "--precision", "fp32")
_DATA = ("--data.side", "16", "--data.held-out", "0.2")
_PLAN = ("--plan.batch-size", "16", "--plan.log-every", "1", "--plan.repeat")
_SIZES = ("--tokenizer.vocab-size", "16", "--tokenizer.stride", "4", "--tokenizer.width", "8")
_BACKBONE = (
    *("--backbone.img-size", "16", "16", "--backbone.patch-size", "4", "--backbone.embed-dim", "16"),
    *("--backbone.depth", "2", "--backbone.num-heads", "2"),
)
_PRETRAIN = (*_CPU, *_DATA, *_PLAN, *_BACKBONE)
_CACHED = ("--num-views", "2")
_FINETUNE = (*_PRETRAIN, "--validation", "0.25", "--compile", "off")
_STREAM = ("--data.memory", "stream", "--data.num-workers")
_SCENES = ("--task", "segmentation", "--task.void", "11", "--task.head.width", "8")


@dataclass(frozen=True)
class Run:
    """One command. `{name}` in its arguments is the output of another run, `{out}` its own; `trained` are run folders
    in it, of which the last weights count. It gets `--plan.steps` and `--seed` where it has them."""

    arguments: Sequence[str]
    trained: Sequence[str] = (".",)
    steps: Sequence[str] = ("--plan.steps",)
    seed: Sequence[str] = ("--seed",)


def _pretrain(*flags: str, data: str = "{photos}", compiled: str = "off", tokenizer: bool = True) -> Run:
    given = ("--data", data, "--out", "{out}", "--compile", compiled, *(("--tokenizer", "{tokenizer}") * tokenizer))
    return Run(("pretrain", "tiny", *_PRETRAIN, *given, *flags))


def _finetune(data: str, *flags: str) -> Run:
    given = ("--data", data, "--init", "{pretrain}", "--out", "{out}")
    return Run(("finetune", "tiny", *_FINETUNE, *given, *flags))


def _tokenizer(recipe: str, *flags: str) -> Run:
    given = ("--data", "{photos}", "--out", "{out}")
    return Run(("train-tokenizer", recipe, *_CPU, *_DATA, *_PLAN, *_SIZES, *given, *flags))


RUNS: Mapping[str, Run] = {
    "demo": Run(
        ("demo", "--budget", "20s", "--probe-images", "200", "--out", "{out}", *_CPU),
        trained=("tokenizer", "pretrain"),
        steps=("--tokenizer-steps", "--pretrain-steps"),
        seed=("--tokenizer.seed", "--pretrain.seed"),
    ),
    "tokenizer": _tokenizer("tiny"),
    "tokenizer-stream": _tokenizer("tiny", *_STREAM, "0"),
    "tokenizer-vq": _tokenizer("vq"),
    "pretrain": _pretrain(),
    "pretrain-compiled": _pretrain(compiled="on"),
    "pretrain-stream-0": _pretrain(*_STREAM, "0"),
    "pretrain-stream-2": _pretrain(*_STREAM, "2", "--jitter.brightness", "0.4", "--jitter.saturation", "0.4"),
    "pretrain-tar": _pretrain(*_STREAM, "0", data="{shard}"),
    "prepared": Run(("prepare", "{photos}", "--out", "{out}"), trained=(), steps=(), seed=()),
    "pretrain-prepared": _pretrain(*_STREAM, "0", data="{prepared}"),
    "pretrain-soft": _pretrain("--target", "soft-tokens"),
    "pretrain-pixels": _pretrain("--target", "pixels", *_STREAM, "0", tokenizer=False),
    "tokens": Run(
        ("tokenize", "{photos}", *_PRETRAIN, *_CACHED, "--tokenizer", "{tokenizer}", "--out", "{out}"), trained=()
    ),
    "pretrain-cached": _pretrain("--token-cache", "{tokens}", *_CACHED),
    "finetune": _finetune("{photos}"),
    "finetune-stream": _finetune("{photos}", *_STREAM, "0"),
    "finetune-scenes": _finetune("{scenes}", *_SCENES),
}


class Bits:
    """Does each run once, in `folder`, and those that it needs before it."""

    def __init__(self, folder: Path, steps: int, seed: int, threads: int) -> None:
        self.folder, self.steps, self.seed = folder, steps, seed
        self.environment = os.environ | {"OMP_NUM_THREADS": f"{threads}"}
        self.made = {"photos": _photos(folder / "photos"), "scenes": _scenes(folder / "scenes")}
        self.made["shard"] = _shard(folder / "shard-000.tar", self.made["photos"])

    def of(self, name: str) -> str:
        """The digest of a run."""
        folder, digest = self._out(name), hashlib.sha256()
        for trained in RUNS[name].trained:
            _add_run(digest, folder / trained)
        return digest.hexdigest()

    def _out(self, name: str) -> Path:
        """What a run has written."""
        if name not in self.made:
            run, out = RUNS[name], self.folder / name
            flags = [word for flag in run.steps for word in (flag, f"{self.steps}")]
            flags += [word for flag in run.seed for word in (flag, f"{self.seed}")]
            self._smalti(name, [*(self._filled(word, out) for word in run.arguments), *flags])
            self.made[name] = out
        return self.made[name]

    def _filled(self, word: str, out: Path) -> str:
        if not word.startswith("{"):
            return word
        return str(out if word == "{out}" else self._out(word.strip("{}")))

    def _smalti(self, name: str, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "smalti", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{name} ended with {done.returncode}: smalti {' '.join(arguments)}\n{done.stderr[-2000:]}")


def _add_run(digest: "hashlib._Hash", run: Path) -> None:
    """Names, shapes and bytes of all tensors of the last checkpoint, and every loss; not the files, whose headers may
    be in another order."""
    last = max((run / "checkpoints").iterdir())
    for name in ("model.safetensors", "state.safetensors"):
        for tensor, about in sorted(deserialize((last / name).read_bytes())):
            digest.update(f"{name} {tensor} {about['dtype']} {about['shape']}\n".encode())
            digest.update(about["data"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses, f"{run} has no loss"
    digest.update(json.dumps(losses).encode())


def _photos(folder: Path) -> Path:
    """JPEG files of two classes: stripes across or down with noise, of several sizes, every tenth grey."""
    for label, name in enumerate(("across", "down")):
        (folder / name).mkdir(parents=True)
        for number in range(48):
            rng = np.random.default_rng([number, label])
            rows, columns = np.mgrid[: rng.integers(40, 90), : rng.integers(40, 90)]
            stripes = ((rows if label else columns) + rng.integers(9)) // rng.integers(3, 9) % 2
            pixels = 60 + 120 * stripes[..., None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 12, (*stripes.shape, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image = image.convert("L") if number % 10 == 0 else image
            image.save(folder / name / f"{number:02d}.jpg", quality=90)
    return folder


def _scenes(folder: Path) -> Path:
    """Images of boxes with masks: 0 around, 1 where it is red, 2 where it is blue, 11 (void) in the first rows."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(24):
        rng, ids = np.random.default_rng(number), np.zeros((24, 32), np.uint8)
        top, left = rng.integers(0, (12, 16))
        ids[top : top + 12, left : left + 16] = 1 + number % 2
        pixels = np.array([[40, 40, 40], [200, 60, 60], [60, 60, 200]])[ids] + rng.normal(0, 8, (24, 32, 3))
        ids[:2] = 11
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number:02d}.png")
        Image.fromarray(ids).save(folder / "masks" / f"{number:02d}.png")
    return folder


def _shard(file: Path, photos: Path) -> Path:
    """The photographs as a tar shard, with their classes."""
    with tarfile.open(file, "w") as tar:
        for number, path in enumerate(sorted(photos.glob("*/*.jpg"))):
            label = b"1" if path.parent.name == "down" else b"0"
            for ending, data in (("jpg", path.read_bytes()), ("cls", label)):
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file


def main() -> None:
    """Print the digests, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trained = [name for name, run in RUNS.items() if run.trained]
    parser.add_argument("--only", choices=trained, action="append", help="this run, and what it needs; repeatable")
    parser.add_argument("--against", type=Path, help="digests to compare with; 1 where one differs")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of each run")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bits = Bits(Path(folder), given.steps, given.seed, given.threads)
        found = {name: bits.of(name) for name in given.only or trained}
    print(json.dumps(found, indent=1, sort_keys=True))
    if given.against is not None:
        known = json.loads(given.against.read_text())
        differing = sorted(name for name in found if found[name] != known.get(name))
        missing = [] if given.only else sorted(known.keys() - found.keys())
        if differing or missing:
            sys.exit(f"differs: {', '.join(differing) or 'nothing'}; not run: {', '.join(missing) or 'nothing'}")


if __name__ == "__main__":
    main()
