"""Tokenising with our `dalle` against the encoder of the PyPI package `dall-e` (extra `peers`), on the same weights.

    python benchmarks/tokenizer.py --json

The peer runs as its users run it: float32, contiguous, eager, then argmax. Ours runs channels-last, in bf16 where
`choose_compute` finds that it pays. Both see the same images in one process, one after the other, the order swapped
from round to round; the figure is the median over the rounds of the peer's time divided by ours. Weights are random.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import dall_e
import torch
from printing import print_figures
from torch import Tensor

from smalti.core.compute import Compute, choose_compute
from smalti.runs.import_model import ImportModel
from smalti.runs.import_model import main as import_model
from smalti.runs.tokenizers import load_dalle
from smalti.tokenizers.dalle import DallETokenizer


def both(width: int, vocab_size: int, compute: Compute) -> tuple[torch.nn.Module, DallETokenizer]:
    """The peer's encoder, and ours imported from its files."""
    torch.manual_seed(0)
    encoder = dall_e.Encoder(n_hid=width, vocab_size=vocab_size).eval()
    decoder = dall_e.Decoder(n_hid=width, vocab_size=vocab_size).eval()
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{name}.pkl") for name in ("encoder", "decoder")]
        for half, path in zip((encoder, decoder), paths, strict=True):
            torch.save(half, path)
        out = str(Path(folder) / "model")
        import_model(ImportModel((paths[0], paths[1]), out))
        return encoder.to(compute.device), load_dalle(out, compute)


def seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of one call, until its result is there."""
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def compare(options: argparse.Namespace, compute: Compute) -> dict[str, object]:
    """Images a second of each, and how many times faster ours is."""
    encoder, tokenizer = both(options.width, options.vocab_size, compute)
    shape = (options.batch, 3, options.side, options.side)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = images.to(compute.device)

    def peer() -> Tensor:
        return encoder(dall_e.map_pixels(images / 255)).argmax(1)

    def ours() -> Tensor:
        with compute.autocast():
            return tokenizer.encode(images)

    times: dict[str, list[float]] = {"peer": [], "ours": []}
    with torch.inference_mode():
        agree = float((peer() == ours()).double().mean())
        for number in range(options.rounds):
            for name, call in (("peer", peer), ("ours", ours))[:: 1 if number % 2 else -1]:
                times[name].append(seconds(call, compute.device))
    ratios = sorted(theirs / mine for theirs, mine in zip(times["peer"], times["ours"], strict=True))
    speed = {name: options.batch / statistics.median(found) for name, found in times.items()}
    return {
        "encode_ratio_vs_fp32_eager": round(statistics.median(ratios), 3),
        "lowest_ratio": round(ratios[0], 3),
        "highest_ratio": round(ratios[-1], 3),
        "peer_images_per_second": round(speed["peer"], 3),
        "smalti_images_per_second": round(speed["ours"], 3),
        "equal_tokens": round(agree, 4),
    }


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=112, help="pixels")
    parser.add_argument("--batch", type=int, default=16, help="images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    compute = choose_compute(options.device, options.precision)
    result = compare(options, compute) | {
        "precision": str(compute.dtype).removeprefix("torch."),
        "gflops": dict(compute.gflops),
        "side": options.side,
        "batch": options.batch,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "dall-e")},
    }
    print_figures(result, options.json)


if __name__ == "__main__":
    main()
