"""Blockwise masks in blocks of 4096 against a sampler that draws one mask at a time, and the price of a hash.

    python benchmarks/masks.py [--json]

Both sides run in this process, in turn; every figure is a median of processor time, which other programs on the same
machine do not add to. The reference is the procedure of BEiT's released code as a plain Python loop; its masks mask at
most 75 of 196 patches, ours exactly 78. Then every masking there is, 4096 at once and a batch of 64.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from smalti.core.compute import keep_freed_memory
from smalti.core.contracts import Masking
from smalti.core.rng import Stream, fold
from smalti.functional.masking import Blockwise, Random, Rolled
from smalti.functional.published_masking import Algorithm1, Release

VARIANTS: dict[str, Masking] = {
    "exact": Blockwise(),
    "rolled": Rolled(),
    "release": Release(num_masked=75),
    "algorithm1": Algorithm1(),
    "random": Random(),
}
BATCH = 64


def reference_mask(
    draw: random.Random, side: int = 14, budget: int = 75, least: int = 16, min_aspect: float = 0.3
) -> list[list[bool]]:
    """One mask: blocks of ten tries each, as long as one adds patches and stays within the budget."""
    mask = [[False] * side for _ in range(side)]
    masked = 0
    while masked < budget:
        left_to_mask = budget - masked
        for _ in range(10):
            area = draw.uniform(least, left_to_mask)
            aspect = math.exp(draw.uniform(math.log(min_aspect), -math.log(min_aspect)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= side or width >= side:
                continue
            top, left = draw.randint(0, side - height), draw.randint(0, side - width)
            rows = mask[top : top + height]
            added = height * width - sum(sum(row[left : left + width]) for row in rows)
            if 0 < added <= left_to_mask:
                for row in rows:
                    row[left : left + width] = [True] * width
                masked += added
                break
        else:
            break
    return mask


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(rounds: int, masks: int = 4096, reference_masks: int = 128, samples: int = 65536) -> dict[str, float]:
    """Medians over `rounds`, in microseconds; the ratio is the median of the rounds' ratios."""
    masking, keys, draw = Blockwise(), fold(0, np.arange(masks), Stream.MASK), random.Random(0)
    index = np.arange(samples)
    masking(keys, (14, 14))
    ours, reference, hashed = [], [], []
    for _ in range(rounds):
        ours.append(_seconds(lambda: masking(keys, (14, 14))) / masks * 1e6)
        reference.append(_seconds(lambda: [reference_mask(draw) for _ in range(reference_masks)]))
        hashed.append(_seconds(lambda: fold(0, 3, index, Stream.MASK)) / samples * 1e6)
    reference = [seconds / reference_masks * 1e6 for seconds in reference]
    return {
        "ratio_vs_reference": statistics.median(slow / fast for slow, fast in zip(reference, ours, strict=True)),
        "microseconds_per_mask": statistics.median(ours),
        "reference_microseconds_per_mask": statistics.median(reference),
        "microseconds_per_sample": statistics.median(hashed),
    }


def measure_variants(rounds: int, masks: int = 4096) -> dict[str, dict[str, float]]:
    """Of every masking the microseconds a mask, many at once and in a batch of a training step; medians."""
    keys, figures = fold(0, np.arange(masks), Stream.MASK), {}
    for name, masking in VARIANTS.items():
        masking(keys, (14, 14))
        figures[name] = {
            f"at_once_{num}": statistics.median(
                _seconds(partial(masking, keys[:num], (14, 14))) / num * 1e6 for _ in range(rounds)
            )
            for num in (masks, BATCH)
        }
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="blockwise masks and the hash behind them, timed")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--rounds", type=int, default=51, help="repetitions of every measurement")
    arguments = parser.parse_args()
    keep_freed_memory()  # as training does
    figures = measure(arguments.rounds)
    print(
        f"mask 14 x 14, 4096 at once {figures['microseconds_per_mask']:.2f} µs, "
        f"one by one in Python {figures['reference_microseconds_per_mask']:.1f} µs: "
        f"{figures['ratio_vs_reference']:.1f} times as fast; "
        f"hash {figures['microseconds_per_sample']:.4f} µs a sample"
    )
    variants = measure_variants(arguments.rounds)
    for name, costs in variants.items():
        print(f"{name:<11}" + "".join(f"{cost:7.2f} µs {title.replace('_', ' ')}" for title, cost in costs.items()))
    if arguments.json:
        rounded = {name: round(value, 5) for name, value in figures.items()}
        rounded_costs = {
            name: {title: round(cost, 5) for title, cost in costs.items()} for name, costs in variants.items()
        }
        print(json.dumps(rounded | {"variants": rounded_costs}))
