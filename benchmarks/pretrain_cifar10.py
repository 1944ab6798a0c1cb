"""Half an hour of masked image modeling on CIFAR-10 on two cores, or an hour on one: is the loss worth anything?

    python benchmarks/pretrain_cifar10.py --cifar10 FOLDER --tokenizer RUN

FOLDER holds train/ and test/, RUN a tokenizer of 32 x 32 pixels and stride 4, such as `dvae-1024` of
study_tokenizers.py. The loss, what it has to beat, and the bound are of the held-out twentieth of train/; k-NN and
linear probe are of test/, beside the same network untrained. The run folder's log and the result go to
docs/results/pretrain-cifar10. A run that was cut off goes on.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from smalti.core.compute import Compute, choose_compute
from smalti.core.config import to_json
from smalti.core.log import Log
from smalti.data.datasets.open import open_source
from smalti.data.load import Data, InMemoryData, TrainingData, read_source
from smalti.data.transforms.views import NO_JITTER, RandomResizedCrop
from smalti.evaluation.probe import probe_backbone
from smalti.functional.masking import Blockwise
from smalti.models.vit import ViT
from smalti.runs.folder import RunFolder, is_run, read_config
from smalti.runs.models import load_model
from smalti.runs.pretrain import Pretrain, prepare
from smalti.runs.pretrain import main as pretrain
from smalti.runs.session import seconds_per_step
from smalti.runs.tokenizers import load_tokenizer
from smalti.training.optim import Optimiser
from smalti.training.training_plan import Plan

HOME = Path(__file__).parent.parent / "docs" / "results" / "pretrain-cifar10"

BACKBONE = ViT(
    img_size=(32, 32),
    patch_size=4,
    embed_dim=128,
    depth=6,
    num_heads=4,
    drop_path_rate=0.0,
    init="xavier",
    pos_init="sincos",
)
"""1.2 M parameters, 64 patches of 4 x 4 pixels."""


def configuration(data: Path, tokenizer: str, out: Path) -> Pretrain:
    """Visual tokens at masked patches, as `study_cifar10.py` predicts them."""
    return Pretrain(
        data=Data(path=str(data / "train"), channels=3, side=32),
        tokenizer=tokenizer,
        out=str(out),
        backbone=BACKBONE,
        masking=Blockwise(ratio=0.4),
        crop=RandomResizedCrop(scale=(0.4, 1.0)),
        jitter=NO_JITTER,
        optimiser=Optimiser(lr=2e-3, warmup_ratio=0.08, betas=(0.9, 0.98)),
        plan=Plan(batch_size=128, log_every=50, save_every=500),
    )


def steps_for(minutes: float, config: Pretrain, images: InMemoryData, compute: Compute) -> int:
    """Optimiser steps that take so much processor time."""
    tokenizer = load_tokenizer(config.tokenizer, compute)
    seconds = seconds_per_step(*prepare(config, images, tokenizer, compute), compute, clock=time.process_time)
    return max(1, round(60 * minutes / seconds))


def probes(config: Pretrain, images: InMemoryData, data: Path, compute: Compute) -> dict[str, Any]:
    """k-NN and linear probe of the trained network and of the same one untrained, on test images."""
    test = read_source(open_source(str(data / "test"), 3), config.data, Log())
    labelled = TrainingData(images.train, test)
    networks = {"pretrained": load_model(config.out, compute).backbone, "random": config.backbone.build(config.seed)}
    return {name: asdict(probe_backbone(network.eval(), labelled, compute)) for name, network in networks.items()}


def main() -> None:
    """Train, or go on, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help="a folder with train/ and test/")
    parser.add_argument("--tokenizer", required=True, help="the run folder of the tokenizer")
    parser.add_argument("--run", type=Path, default=Path("runs/pretrain-cifar10"), help="the run folder")
    parser.add_argument("--out", type=Path, default=HOME, help="where the result is written")
    parser.add_argument("--minutes", type=float, default=60, help="of processor time, over all threads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="plain blocks, for very short runs")
    parser.add_argument("--no-probes", action="store_true", help="measure the loss alone")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    compute, resume = choose_compute(), is_run(str(given.run))
    config = configuration(given.cifar10, given.tokenizer, given.run)
    config = replace(config, compile="off" if given.no_compile else "on")
    images = config.data.load(Log())
    if resume:
        config = replace(read_config(str(given.run), Pretrain), out=str(given.run))
    else:
        config = replace(config, plan=replace(config.plan, steps=steps_for(given.minutes, config, images, compute)))
    began, used = time.time(), time.process_time()
    measured = pretrain(config, resume=resume, images=images, compute=compute)
    spent = {"seconds": time.time() - began, "processor_seconds": time.process_time() - used, "resumed": resume}
    shown = replace(config, out="", tokenizer="", data=replace(config.data, path="cifar10/train"))
    result = {"minutes": given.minutes, "threads": given.threads, **spent, **measured}
    result |= {} if given.no_probes else {"probes": probes(config, images, given.cifar10, compute)}
    result |= {"processor": platform.machine(), "torch": torch.__version__, "compute": compute.describe()}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "result.json").write_text(json.dumps(result | {"config": to_json(shown)}, indent=1) + "\n")
    (given.out / "metrics.jsonl").write_bytes(RunFolder(given.run).metrics.read_bytes())
    below = measured["unigram_entropy_nats"] - measured["loss_nats"]
    print(f"{measured['steps']} steps, loss {measured['loss_nats']:.3f} nats, {below:.3f} below the unigram entropy")


if __name__ == "__main__":
    main()
