"""`smalti masks`: statistics of a masking: how much it covers, where, in which connected pieces, and its cost."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from smalti.core.compute import keep_freed_memory
from smalti.core.config import require, setting
from smalti.core.files import require_place, write_bytes
from smalti.core.rng import Stream, fold
from smalti.functional.masking import Blockwise, Random, Rolled, component_sizes
from smalti.functional.published_masking import Algorithm1, Release
from smalti.report.charts import curve
from smalti.report.page import Section, table
from smalti.report.pictures import png, scale_of, share_map, sheet, tile_row
from smalti.runs.sections import percent, write_page

Variant: TypeAlias = Literal["exact", "rolled", "release", "algorithm1", "random"]
Masked: TypeAlias = Blockwise | Rolled | Release | Algorithm1 | Random

_KINDS = {"exact": Blockwise, "rolled": Rolled, "release": Release, "algorithm1": Algorithm1, "random": Random}
_AT_ONCE, _PATCHES_AT_ONCE = 4096, 1 << 20
"""Masks, and patches of masks, that are drawn in one call, at most."""
_IN_PIECES = 1024
"""Masks whose pieces are counted, at most."""
_TEXTS, _PICTURES, _ACROSS = 4, 23, 8
"""Examples in the terminal and in the picture; pictures side by side."""
_SUFFIXES = (".html", ".htm", ".png")


@dataclass(frozen=True)
class Masks:
    """Which masking to look at, on which grid, and how closely."""

    variant: Variant = setting("exact", "how patches are masked")
    grid: tuple[int, int] = setting((14, 14), "rows and columns of patches")
    ratio: float = setting(0.4, "share of patches to mask")
    count: int | None = setting(None, "patches to mask, in place of the ratio; none: the ratio")
    draws: int = setting(20_000, "masks to draw")
    seed: int = setting(0, "of the masks")
    out: str = setting("", "the page (.html) or the picture (.png) to write; empty: none")

    def __post_init__(self) -> None:
        sides = "x".join(map(str, self.grid))
        require(all(1 <= side <= 256 for side in self.grid), f"a grid of {sides} patches", "use sides of 1 to 256")
        require(self.draws >= 1, f"{self.draws} masks", "draw at least 1")
        require(0 <= self.seed < 2**63, f"a seed of {self.seed}", "use 0 to 2^63 - 1")
        suffix = Path(self.out).suffix.lower()
        require(not self.out or suffix in _SUFFIXES, f"cannot write '{self.out}'", "use a name in .html or .png")
        self.masking.requested(self.grid)

    @property
    def masking(self) -> Masked:
        return _KINDS[self.variant](self.ratio, num_masked=self.count)


class MaskStatistics(NamedTuple):
    """What was found: masks by number of masked patches, share of masks that cover a patch, examples and figures."""

    masked: Float[np.ndarray, "N+1"]
    coverage: Float[np.ndarray, "h w"]
    examples: Bool[np.ndarray, "n h w"]
    result: dict[str, Any]


def main(config: Masks) -> dict[str, Any]:
    """Draw masks, count and print; write the page or the picture if one is wanted.

    Returns:
        `requested` patches; `mean`, `std`, `min`, `max` of what is masked and its `histogram` (patches -> share of
        masks); `share_exact`, of masks that cover just what was requested; `coverage` (h x w), the share of masks that
        cover each patch; `pieces`, connected pieces a mask on average, and `piece_sizes` (patches -> share of pieces),
        both of the first 1024 masks; `microseconds` of processor time a mask.
    """
    if config.out:
        require_place(Path(config.out).expanduser())
    keep_freed_memory()  # as training does, so that the cost is the same
    seen = look(config)
    print(describe(config, seen))
    if config.out:
        _write(config, seen)
        print(f"written: {config.out}")
        seen.result["out"] = config.out
    return seen.result


def look(config: Masks) -> MaskStatistics:
    """Draw all masks in batches, and count."""
    grid, patches = config.grid, config.grid[0] * config.grid[1]
    masked, coverage, seconds = np.zeros(patches + 1), np.zeros(patches), 0.0
    first = np.zeros((0, patches), np.bool_)
    for masks, spent in _draw(config):
        masked += np.bincount(masks.sum(axis=1), minlength=patches + 1)
        coverage += masks.sum(axis=0)
        seconds += spent
        first = np.concatenate([first, masks[: _IN_PIECES - len(first)]])
    masked, coverage = masked / config.draws, coverage.reshape(grid) / config.draws
    sizes = component_sizes(first, grid)
    found, requested = np.flatnonzero(masked), config.masking.requested(grid)
    mean = float(np.arange(patches + 1) @ masked)
    result = {
        "variant": config.variant,
        "grid": list(grid),
        "draws": config.draws,
        "requested": requested,
        "mean": mean,
        "std": float(np.sqrt(np.square(np.arange(patches + 1) - mean) @ masked)),
        "min": int(found[0]),
        "max": int(found[-1]),
        "share_exact": float(masked[requested]),
        "histogram": {int(number): float(masked[number]) for number in found},
        "coverage": coverage.tolist(),
        "pieces": len(sizes) / len(first),
        "piece_sizes": {int(size): float((sizes == size).mean()) for size in np.unique(sizes)},
        "microseconds": seconds / config.draws * 1e6,
    }
    return MaskStatistics(masked, coverage, first[:_PICTURES].reshape(-1, *grid), result)


def _draw(config: Masks) -> Iterator[tuple[Bool[np.ndarray, "B N"], float]]:
    """Yield batches of masks (True where masked), each with the processor time in seconds that it took."""
    masking, grid = config.masking, config.grid
    some = max(1, min(_AT_ONCE, _PATCHES_AT_ONCE // (grid[0] * grid[1])))
    masking(fold(config.seed, np.arange(1)), grid)  # run what is computed only once for a grid before timing
    for start in range(0, config.draws, some):
        keys = fold(config.seed, np.arange(start, min(start + some, config.draws)), Stream.MASK)
        began = time.process_time()
        masks = masking(keys, grid)
        yield masks, time.process_time() - began


def describe(config: Masks, seen: MaskStatistics) -> str:
    """Examples, coverage and figures for a terminal; plain ASCII."""
    (height, width), result = config.grid, seen.result
    across = max(1, min(_TEXTS, len(seen.examples), 96 // (2 * width + 2)))
    drawn = [[["##" if masked else " ." for masked in row] for row in mask] for mask in seen.examples[:across]]
    lines = ["  ".join("".join(mask[row]) for mask in drawn) for row in range(height)]
    lines += ["", "share of masks that cover a patch, in %"]
    lines += ["".join(f"{100 * share:4.0f}" for share in row) for row in seen.coverage]
    return "\n".join([*lines, "", *(f"{name:<14}{text}" for name, text in _figures(result).items())])


def _figures(result: dict[str, Any]) -> dict[str, str]:
    patches, largest = result["grid"][0] * result["grid"][1], max(result["piece_sizes"])
    return {
        "masking": f"{result['variant']}, {result['grid'][0]} x {result['grid'][1]} patches, {result['draws']} masks",
        "masked": f"{result['mean']:.2f} patches ({percent(result['mean'] / patches)}), deviation {result['std']:.2f}, "
        f"{result['min']} to {result['max']}",
        f"exactly {result['requested']}": percent(result["share_exact"]),
        "pieces": f"{result['pieces']:.2f} a mask, of {min(result['piece_sizes'])} to {largest} patches",
        "cost": f"{result['microseconds']:.2f} microseconds a mask",
    }


def _write(config: Masks, seen: MaskStatistics) -> None:
    target, scale = Path(config.out).expanduser(), scale_of(config.grid[1])
    coverage, masks = share_map(seen.coverage[None]), share_map(seen.examples)
    if target.suffix.lower() == ".png":
        shown = np.concatenate([coverage, masks])
        whole = shown[: max(1, len(shown) // _ACROSS) * _ACROSS]
        write_bytes(target, png(sheet({str(n): whole[n::_ACROSS] for n in range(min(_ACROSS, len(whole)))}, scale)))
        return
    patches = np.flatnonzero(seen.masked)
    rows = [[name, text] for name, text in _figures(seen.result).items()]
    points = (patches.tolist(), seen.masked[patches].tolist())
    chart = curve({"share of masks": points}, xlabel="masked patches", ylabel="share of masks")
    sections = [
        Section("Masks", tile_row({"mask": masks}, scale=scale, across=_ACROSS), "Masked patches are dark."),
        Section(
            "Where",
            tile_row({"share of masks": coverage}, scale=2 * scale),
            "The darker a patch, the more masks cover it.",
        ),
        Section("How much", table(["", "value"], rows) + (chart if len(patches) > 1 else "")),
    ]
    write_page(target, f"{config.variant} masks", "What a masking covers.", sections)
