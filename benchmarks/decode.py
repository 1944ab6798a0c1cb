"""Time `smalti.data.decode.decode` against plain Pillow on a folder of photographs.

    python benchmarks/decode.py FOLDER --side 224 --json

Both read the same file from disk, one after the other in one process and one thread, the order swapped from file to
file; the figure is the median over the files of Pillow's time divided by ours. Files that either cannot read are left
out and counted.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from printing import print_figures

from smalti.core.errors import DataError
from smalti.data.decode import decode
from smalti.data.formats import EXTENSIONS


def pillow(path: Path) -> None:
    """What most loaders do."""
    with Image.open(path) as image:
        np.asarray(image.convert("RGB"))


def pillow_shrunk(path: Path, side: int) -> None:
    """The same, then a resize."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    scale = side / min(picture.size)
    if scale < 1:
        picture = picture.resize([round(length * scale) for length in picture.size], Image.Resampling.BICUBIC)
    np.asarray(picture)


def fastest(call: Callable[[], object], times: int) -> float:
    """Seconds of the fastest call."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def compare(paths: Sequence[Path], side: int | None, times: int) -> dict[str, float]:
    """Medians over the files: milliseconds of each, and how many times faster ours is, with the quartiles."""
    ours: list[float] = []
    theirs: list[float] = []
    for number, path in enumerate(paths):
        calls: list[tuple[list[float], Callable[[], object]]] = [
            (theirs, partial(pillow, path) if side is None else partial(pillow_shrunk, path, side)),
            (ours, partial(decode, path, 3, side)),
        ]
        for results, call in calls[:: 1 if number % 2 else -1]:
            results.append(fastest(call, times))
    ratios = [pillow_seconds / our_seconds for pillow_seconds, our_seconds in zip(theirs, ours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "pillow_ms": round(1000 * statistics.median(theirs), 3),
        "smalti_ms": round(1000 * statistics.median(ours), 3),
        "times_faster": round(middle, 3),
        "lower_quartile": round(low, 3),
        "upper_quartile": round(high, 3),
    }


def readable(path: Path) -> bool:
    """Whether both can read it; also brings it into the cache of the system."""
    try:
        decode(path, 3)
        pillow(path)
    except (DataError, OSError, ValueError, SyntaxError):
        return False
    return True


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, nargs="*", default=[64, 224], help="shorter sides to shrink to as well")
    parser.add_argument("--times", type=int, default=5, help="the fastest of so many calls counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    found = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    paths = [path for path in found if readable(path)]
    if len(paths) < 2:
        parser.error(f"{len(paths)} readable images in {options.folder}, need at least 2")
    result = {
        "files": len(paths),
        "left_out": len(found) - len(paths),
        "bytes_median": statistics.median(os.path.getsize(path) for path in paths),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("pillow", "simplejpeg", "numpy")},
        "full": compare(paths, None, options.times),
    } | {f"shorter side {side}": compare(paths, side, options.times) for side in options.side}
    print_figures(result, options.json)


if __name__ == "__main__":
    main()
