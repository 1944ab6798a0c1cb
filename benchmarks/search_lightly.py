"""MAE of lightly at other settings, pretrained and measured as the variations of ablations_cifar10.py.

    python benchmarks/search_lightly.py --cifar10 FOLDER

FOLDER holds train/ and test/. What is searched is what a user of it would: learning rate, depth of the decoder, share
masked, and the optimiser. A result is a file of docs/results/cifar10/ablations, and finished ones are left alone.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ablations_cifar10 import HOME, IMAGES, PROTOCOL, all_finished, keep, table
from compare_lightly import read_encoder
from frozen import battery
from lightly_methods import BATCH, MAE, METHODS, OURS, SEED, Method, about, pretrain
from safetensors.torch import save_file
from timm.layers import set_fused_attn

from smalti.core.compute import Compute, choose_compute
from smalti.core.log import Log
from smalti.data.datasets.open import open_source
from smalti.data.load import InMemoryData, read_source

USUAL = METHODS["mae-our-settings"]
"""2e-3 at a batch of 128 images (4e-3 at 256), normalised patches, four blocks of decoder, 75 % masked."""
SEARCH = {
    "mae": USUAL,
    "mae-depth-1": replace(USUAL, build=partial(MAE, depth=1)),
    "mae-depth-2": replace(USUAL, build=partial(MAE, depth=2)),
    "mae-lr-4e-3": replace(USUAL, lr=8e-3),
    "mae-muon-lr-4e-3": replace(USUAL, lr=8e-3, muon=True),
    "mae-muon-lr-2e-3": replace(USUAL, muon=True),
    "mae-muon-lr-8e-3": replace(USUAL, lr=16e-3, muon=True),
    "mae-masked-60": replace(USUAL, build=partial(MAE, masked=0.6)),
    "mae-lr-1e-3": replace(USUAL, lr=2e-3),
    "mae-depth-8": replace(USUAL, build=partial(MAE, depth=8)),
}


def run(method: Method, folder: Path, data: Path, compute: Compute, images: InMemoryData) -> dict[str, Any]:
    """Pretrain with a setting, and measure its frozen features."""
    training = pretrain(method, images, IMAGES // BATCH, folder, compute, compiled=True)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "encoder.safetensors"
    save_file(training.model.backbone.vit.state_dict(), weights)
    test = read_source(open_source(str(data / "test"), OURS.data.channels), OURS.data, Log())
    frozen = battery(read_encoder(weights), images.train, test, compute, SEED, PROTOCOL)
    found = {"variation": about(method), "images": IMAGES, "processor_seconds": training.seconds}
    found |= {"frozen": frozen.as_dict(), "loss": sum(training.losses[-50:]) / 50}
    return found | {"compute": compute.describe(), "torch": torch.__version__}


def main() -> None:
    """Run the settings that are not finished, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help="a folder with train/ and test/")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"))
    parser.add_argument("--out", type=Path, default=HOME)
    parser.add_argument("--setting", action="append", choices=list(SEARCH), help="these only")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="bf16", help="auto: the faster here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    set_fused_attn(False)
    compute = choose_compute(precision=given.precision)
    images = replace(OURS.data, path=str(given.cifar10 / "train")).load(Log())
    for name in given.setting or SEARCH:
        keep(given.out, name, partial(run, SEARCH[name], given.runs / name, given.cifar10, compute, images))
    print(table(all_finished(given.out)))


if __name__ == "__main__":
    main()
