"""What cycled views cost in quality, and what a token cache saves in time: the nano recipe on the embedded images.

    python benchmarks/views.py --steps 2000 [--seeds 2] [--json]

One tokenizer is trained, then a backbone for every number of views (1, 4, always new ones) with the same seeds: initial
weights, order and masks are the same, the crops of the first epoch too. Printed are the loss on held-out images and the
linear probe on the best layer. All of them read their visual tokens from one cache.

The ratio is the processor time of a training step with a live tokenizer over that of one with a full cache, in turn in
this process; its median. Everything is in a temporary folder.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from smalti.core.compute import Compute, choose_compute
from smalti.core.contracts import Batches
from smalti.core.log import Log
from smalti.data.datasets.open import EMBEDDED
from smalti.data.load import InMemoryData
from smalti.evaluation.probe import probe_backbone
from smalti.recipes import nano
from smalti.runs import pretrain, train_tokenizer
from smalti.runs.models import load_model
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.tokenizers import load_tokenizer
from smalti.training.trainer import Trainer

NUM_VIEWS = (1, 4, None)


def train(config: Pretrain, images: InMemoryData, compute: Compute) -> dict[str, Any]:
    """A backbone and what it is worth."""
    found = pretrain.main(config, images=images, compute=compute)
    probed = probe_backbone(load_model(config.out, compute).backbone, images, compute)
    return {
        "loss_nats": found["loss_nats"],
        "accuracy": found["accuracy"],
        "linear": probed.linear,
        "layer": probed.layer,
        "knn": probed.knn,
    }


def cached_ratio(config: Pretrain, images: InMemoryData, compute: Compute, steps: int) -> float:
    """A step with a live tokenizer over one with a full cache."""
    tokenizer = load_tokenizer(config.tokenizer, compute)
    live = pretrain.prepare(replace(config, token_cache=""), images, tokenizer, compute)
    cached = pretrain.prepare(config, images, tokenizer, compute)
    for step in range(steps):  # what is missing is computed here
        cached[1](step)
    pairs = [(_seconds(*live, step, compute), _seconds(*cached, step, compute)) for step in range(steps)]
    return statistics.median(slow / fast for slow, fast in pairs[min(3, steps - 1) :])


def _seconds(trainer: Trainer, batches: Batches, step: int, compute: Compute) -> float:
    start = time.process_time()
    trainer.train_step(batches(step).to(compute.device), compute)
    return time.process_time() - start


def measure(folder: Path, steps: int, tokenizer_steps: int, seeds: int, compute: Compute) -> dict[str, Any]:
    """Every number of views with every seed, and the ratio of times."""
    data = replace(nano.DATA, path=EMBEDDED)
    first = replace(nano.train_tokenizer(), data=data, out=str(folder / "tokenizer"))
    train_tokenizer.main(replace(first, plan=replace(first.plan, steps=tokenizer_steps)), compute=compute)
    start = replace(nano.pretrain(), data=data, tokenizer=first.out)
    start = replace(start, plan=replace(start.plan, steps=steps))
    images = data.load(Log())
    results = []
    for seed in range(seeds):
        cached = replace(start, seed=seed, token_cache=str(folder / f"cache-{seed}"))
        for num_views in NUM_VIEWS:
            config = replace(cached, num_views=num_views, out=str(folder / f"views-{num_views}-{seed}"))
            results.append({"num_views": num_views, "seed": seed} | train(config, images, compute))
            print(describe(results[-1]), flush=True)
    config = replace(start, token_cache=str(folder / "cache-0"))
    return {
        "steps": steps,
        "epochs": steps * start.plan.batch_size / len(images.train),
        "ratio_live_to_cached": cached_ratio(config, images, compute, steps=min(steps, 40)),
        "runs": results,
    }


def describe(run: dict[str, Any]) -> str:
    """One line."""
    views = "new views" if run["num_views"] is None else f"{run['num_views']} views"
    return (
        f"{views:<10} seed {run['seed']}: held-out loss {run['loss_nats']:.3f} nats,"
        f" {100 * run['accuracy']:.1f} % guessed, linear probe {100 * run['linear']:.2f} % (layer {run['layer']}),"
        f" k-NN {100 * run['knn']:.2f} %"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="cycled views against new ones, and the time a token cache saves")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--steps", type=int, default=2000, help="of pretraining, for every number of views")
    parser.add_argument("--tokenizer-steps", type=int, default=1000, help="of the tokenizer")
    parser.add_argument("--seeds", type=int, default=1, help="runs for every number of views")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Path(scratch), given.steps, given.tokenizer_steps, given.seeds, choose_compute())
    print(
        f"a step with live tokens takes {figures['ratio_live_to_cached']:.3f} times as long as one with cached tokens"
    )
    if given.json:
        print(json.dumps(figures))
