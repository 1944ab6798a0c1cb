"""What the settings of `paper` and `release` change and cost: JPEGs decoded in full, and visual tokens in float32.

    python benchmarks/letter.py FOLDER [--tokenizer RUN] --json

Views: every photograph is shown in several random crops, decoded at the fraction that suffices (the default) and in
full; differences are in grey levels (0 to 255), over the views that were decoded at a fraction. Tokens: those of the
same views in bf16 and in float32, of a tokenizer of yours, or of DALL-E's network with random weights. Times are
processor times, of both ways in turn in this process.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from printing import print_figures

from smalti.core.compute import Compute
from smalti.core.rng import fold
from smalti.data.datasets.folder import Folder
from smalti.data.tokens import encode
from smalti.data.transforms.augment import Render
from smalti.data.transforms.views import RandomResizedCrop, TwoViews
from smalti.runs.tokenizers import load_tokenizer
from smalti.tokenizers.dalle import DallE
from smalti.tokenizers.image_tokenizer import ImageTokenizer

SIZES = (64, 112, 224)
CPU = torch.device("cpu")


def view(folder: Folder, position: int, key: int, side: int, full: bool) -> tuple[NDArray[np.uint8], float]:
    """The patch view of a crop, C H W, and the seconds it took."""
    out = np.zeros((3, side, side), np.uint8)
    began = time.process_time()
    Render(folder, TwoViews(RandomResizedCrop(fallback="centre"), (side, side), full_decode=full))(position, key, [out])
    return out, time.process_time() - began


def decoding(folder: Folder, crops: int) -> dict[str, object]:
    """For views of every size: how far from a full decode they are, and the times."""
    found: dict[str, object] = {}
    for side in SIZES:
        differences, seconds, count = [], np.zeros(2), 0
        for position in range(len(folder)):
            for key in fold(0, np.arange(crops), position).tolist():
                (quick, one), (full, other) = (view(folder, position, key, side, way) for way in (False, True))
                seconds, count = seconds + np.array([one, other]), count + 1
                if not np.array_equal(quick, full):
                    differences.append(np.abs(quick.astype(np.float64) - full))
        far = np.concatenate([difference.reshape(-1) for difference in differences]) if differences else np.zeros(1)
        found[f"{side} pixels"] = {
            "share_at_a_fraction": round(len(differences) / count, 3),
            "mean": round(float(far.mean()), 3),
            "max": float(far.max()),
            "milliseconds": np.round(1000 * seconds / count, 2).tolist(),
            "time_ratio": round(float(seconds[1] / seconds[0]), 2),
        }
    return found


def tokens(folder: Folder, tokenizer: ImageTokenizer, side: int, images: int) -> dict[str, object]:
    """The share of visual tokens that differ between bf16 and float32, and the times."""
    keys = fold(1, np.arange(images)).tolist()
    views = [view(folder, number % len(folder), key, side, full=True)[0] for number, key in enumerate(keys)]
    batch, ids, seconds = torch.from_numpy(np.stack(views)), [], []
    for dtype in (torch.bfloat16, torch.float32):
        encode(batch[:4], tokenizer, Compute(CPU, dtype), chunk=4)
        began = time.process_time()
        ids.append(encode(batch, tokenizer, Compute(CPU, dtype), chunk=min(16, images)))
        seconds.append(time.process_time() - began)
    return {
        "side": side,
        "tokens": ids[0].numel(),
        "share_changed": round(float((ids[0] != ids[1]).float().mean()), 5),
        "milliseconds_an_image": [round(1000 * each / images, 1) for each in seconds],
        "time_ratio": round(seconds[1] / seconds[0], 2),
    }


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crops", type=int, default=4, help="of each photograph")
    parser.add_argument("--tokenizer", default="", help="the run folder of a tokenizer; none: DALL-E's, random weights")
    parser.add_argument("--side", type=int, default=112, help="pixels of the views that are tokenized")
    parser.add_argument("--images", type=int, default=32, help="views that are tokenized")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    folder, compute = Folder(options.folder, 3), Compute(CPU, torch.float32)
    tokenizer = load_tokenizer(options.tokenizer, compute) if options.tokenizer else DallE().build().eval()
    result = {"files": len(folder)} | decoding(folder, options.crops)
    print_figures(result | {"tokens": tokens(folder, tokenizer, options.side, options.images)}, options.json)


if __name__ == "__main__":
    main()
