"""What `smalti embed` takes beside the bare forward pass: the ratio of their images per second, decoding included.

    python benchmarks/embed.py --json                 # ViT-S/16 at 112 x 112
    python benchmarks/embed.py --width 768 --heads 12 --depth 12 --side 224 --json

Both compute the same layer of the same network, in one process and in turn: the bare pass on pixels in memory, the
command from JPEG files to a finished .npy file. `ratio` is images per second of the command over those of the bare
pass, the median over the rounds: 1 where reading and writing cost nothing. On CPUs the decoders use cores that the
network would use, so there it cannot be 1. `ratio_later` is that of three quarters of the images, without the time
that a quarter of them takes alone, and so without what the command does once: load, time number formats, start
decoders.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from smalti.core.compute import Precision, choose_compute
from smalti.core.config import to_json
from smalti.evaluation.features import layer_features
from smalti.models.vit import ViT, first_blocks
from smalti.runs.embed import Embed
from smalti.runs.embed import main as embed
from smalti.runs.network import load_network
from smalti.runs.pretrain_config import Pretrain
from smalti.training.bundle import write_bundle


def photographs(folder: Path, count: int, side: int) -> None:
    """JPEG files twice as wide as the network sees them."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((2 * side, 2 * side), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg")


def network(folder: Path, config: ViT) -> None:
    """A bundle with random weights."""
    folder.mkdir()
    weights = {f"backbone.{name}": value for name, value in config.build().state_dict().items()}
    write_bundle(folder, to_json(Pretrain(backbone=config)), 0, "", weights)


def measure(
    home: Path, config: ViT, count: int, batch_size: int, rounds: int, precision: Precision
) -> dict[str, float]:
    """Seconds of both in every round, and the median of their ratios."""
    photographs(home / "all", count, config.img_size[0])
    photographs(home / "quarter", count // 4, config.img_size[0])
    network(home / "model", config)
    compute = choose_compute(precision=precision)
    backbone = first_blocks(load_network(home / "model", precision=precision).backbone, config.depth)
    pixels = torch.randint(256, (count, 3, *config.img_size), dtype=torch.uint8)

    def bare() -> float:
        began = time.perf_counter()
        for part in pixels.split(batch_size):
            layer_features(backbone, part, compute, config.depth, "mean").cpu()
        return time.perf_counter() - began

    def whole(images: str, number: int) -> float:
        out = home / f"{images}-{number}.npy"
        began = time.perf_counter()
        embed(Embed(str(home / "model"), str(home / images), str(out), layer=config.depth, batch_size=batch_size))
        return time.perf_counter() - began

    bare()
    seconds = [(bare(), whole("all", number), whole("quarter", number)) for number in range(rounds)]
    return {
        "ratio": statistics.median(alone / both for alone, both, _ in seconds),
        "ratio_later": statistics.median(0.75 * alone / (both - quarter) for alone, both, quarter in seconds),
        "bare_images_per_second": count / statistics.median(alone for alone, _, _ in seconds),
        "images_per_second": count / statistics.median(both for _, both, _ in seconds),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 384), ("heads", 6), ("depth", 12), ("side", 112), ("patch", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    config = ViT((given.side, given.side), given.patch, 3, given.width, given.depth, given.heads)
    with tempfile.TemporaryDirectory() as home:
        found = measure(Path(home), config, given.images, given.batch_size, given.rounds, given.precision)
    print(json.dumps(found) if given.json else "\n".join(f"{name}: {value:.3g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
