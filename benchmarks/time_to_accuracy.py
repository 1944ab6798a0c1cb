"""How long each method takes to reach an accuracy on CIFAR-10: ours and MAE of lightly, in core-seconds.

    python benchmarks/time_to_accuracy.py --cifar10 FOLDER --tokenizers RUNS --json
    python benchmarks/time_to_accuracy.py --page --json     # from the files that are there, nothing is run

Every point of a curve is a pretraining of its own, whose learning rate has come to its end; those of equal_time.py are
points too. Folders, settings and core-seconds are those of equal_time.py. Between two points the accuracy of a linear
probe is taken to be linear in the logarithm of time. A point is a file of docs/results/cifar10/time_to_accuracy;
time_to_accuracy.json beside them has the curves and `seconds_ratio_vs_mae`, time_to_accuracy.svg is their plot.
"""

import json
import math
from collections.abc import Mapping
from itertools import pairwise, product
from pathlib import Path
from statistics import mean
from typing import Any

from ablations_cifar10 import keep
from equal_time import HOME as EQUAL_TIME
from equal_time import prepare
from plots import log_lines
from study import study_parser

from smalti.core.files import write_json

HOME = EQUAL_TIME.with_name("time_to_accuracy")
TARGET = 0.62
"""Accuracy of a linear probe of frozen features."""
POINTS = (102, 204, 408, 816, 1224)
"""Core-seconds."""
METHODS = ("ours", "mae", "ours-adamw", "mae-adamw")
_PAIRS = (("ours", "mae"), ("ours-adamw", "mae-adamw"))
_LINES = {"ours": "smalti", "mae": "MAE (lightly)", "ours-adamw": "smalti, AdamW", "mae-adamw": "MAE, AdamW"}


def seconds_until(target: float, curve: Mapping[int, float]) -> float | None:
    """Where a curve first reaches an accuracy; None where it does not, or is above it at its first point."""
    for (before, low), (after, high) in pairwise(sorted(curve.items())):
        if low < target <= high:
            share = (target - low) / (high - low)
            return math.exp(math.log(before) + share * math.log(after / before))
    return None


def collected(*homes: Path) -> dict[str, Any]:
    """The curves, means over the seeds, and when each reaches the accuracy."""
    found: dict[str, dict[int, list[float]]] = {}
    for home in homes:
        for method in METHODS:
            for path in sorted(home.glob(f"*-{method}-[0-9].json")):
                budget, linear = int(path.stem.split("-")[0]), json.loads(path.read_text())["linear"]
                found.setdefault(method, {}).setdefault(budget, []).append(linear)
    curves = {method: {budget: mean(values) for budget, values in points.items()} for method, points in found.items()}
    seconds = {method: seconds_until(TARGET, curve) for method, curve in curves.items()}
    ratios = {f"seconds_ratio_vs_{peer}": _ratio(seconds.get(own), seconds.get(peer)) for own, peer in _PAIRS}
    seeds = {method: {budget: len(values) for budget, values in points.items()} for method, points in found.items()}
    return {"linear": TARGET, "seconds": seconds} | ratios | {"curves": curves, "seeds": seeds}


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs


def write(out: Path, found: dict[str, Any]) -> None:
    """The figures, and the plot."""
    write_json(out.with_suffix(".json"), found)
    lines = {_LINES[method]: {x: 100 * y for x, y in curve.items()} for method, curve in found["curves"].items()}
    plot = log_lines(lines, "core-seconds of pretraining", "linear probe, %", _LINES["mae"])
    out.with_suffix(".svg").write_text(plot)


def main() -> None:
    """Run the points that are missing, and write the curves."""
    parser = study_parser(__doc__, HOME, 40)
    parser.add_argument("--equal-time", type=Path, default=EQUAL_TIME, help="the folder of results of equal_time.py")
    parser.add_argument("--points", type=int, nargs="+", default=POINTS, help="core-seconds")
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--json", action="store_true", help="print the figures as one line of JSON")
    given = parser.parse_args()
    if not given.page:
        cell = prepare(parser, given, given.equal_time)
        for seed, budget, method in product(given.seed or (0,), given.points, given.method or METHODS):
            name = f"{budget}-{method}-{seed}"
            if not (given.equal_time / f"{name}.json").exists():
                keep(given.out, name, cell(budget, method, seed).frozen)
                write(given.out, collected(given.equal_time, given.out))
    found = collected(given.equal_time, given.out)
    write(given.out, found)
    print(json.dumps(found, indent=None if given.json else 1))


if __name__ == "__main__":
    main()
