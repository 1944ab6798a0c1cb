"""A finished pretraining run as a reference that comes with the package.

    python scripts/reference_curve.py RUN --name cifar10-dvae-1024 --data "47,500 images of CIFAR-10, 32 x 32 in colour"

RUN is a run folder, or a folder of docs/results whose result.json holds the configuration. The file goes to
src/smalti/evaluation/references; every run of `smalti pretrain` looks for the nearest one there.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smalti.core.config import from_json, require, to_json
from smalti.evaluation.reference_curves import FLAT_PATCH, MAX_POINTS, Reference, vocab_size_of
from smalti.runs.folder import RunFolder
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.pretraining_checks import setup_of
from smalti.training.targets import Pixels, Tokens

HOME = Path(__file__).parent.parent / "src" / "smalti" / "evaluation" / "references"


def reference_of(run: Path, name: str, data: str) -> Reference:
    """The reference that a run makes."""
    folder = RunFolder(run)
    result = folder.read_result()
    require(bool(result), f"{run} has no result.json", "let the run end first")
    config = config_of(run, result)
    require(config.target in (Tokens(), Pixels()), f"the target is {config.target}", "use tokens or normalised pixels")
    setup = setup_of(config, vocab_size_of(result))
    assert setup is not None
    lines = [line for line in folder.read_metrics() if "loss" in line]
    images = [line["step"] * config.plan.batch_size for line in lines]
    curve = thinned(images, [line["loss"] for line in lines])
    tokens = setup.target == "tokens"
    baseline = result["unigram_entropy_nats"] if tokens else FLAT_PATCH
    held_out = result["loss_nats"] if tokens else result["pixel_loss"]
    return Reference(name, data, setup, round(baseline, 4), round(held_out, 4), *curve)


def thinned(images: Sequence[int], loss: Sequence[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """A curve reduced to at most 60 points, each the mean of consecutive points, of more points towards the end.

    As losses decrease with the logarithm of the images, a point is placed at the geometric mean of its images.
    """
    starts = np.unique(np.geomspace(1, len(images), MAX_POINTS).round().astype(int)) - 1
    sizes = np.diff(starts, append=len(images))
    means = (np.add.reduceat(values, starts) / sizes for values in (np.log(images), np.array(loss, dtype=np.float64)))
    places, heights = means
    return tuple(round(place) for place in np.exp(places).tolist()), tuple(round(y, 4) for y in heights.tolist())


def config_of(run: Path, result: dict[str, Any]) -> Pretrain:
    """The configuration of a run."""
    file = run / "config.json"
    return from_json(Pretrain, json.loads(file.read_text())["config"] if file.exists() else result["config"])


def written(reference: Reference) -> str:
    """The text of a file."""
    return json.dumps(to_json(reference), indent=1) + "\n"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run that has ended")
    parser.add_argument("--name", required=True, help="of the file, and in what is said")
    parser.add_argument("--data", required=True, help="what it learned from, in words that end 'a run of ours on ...'")
    parser.add_argument("--out", type=Path, default=HOME, help="where the file is written")
    given = parser.parse_args()
    target = given.out / f"{given.name}.json"
    target.write_text(written(reference_of(given.run, given.name, given.data)))
    print(f"written: {target}")


if __name__ == "__main__":
    main()
