"""How far colours are from the released code's: one matrix for three steps, and after the crop instead of before it.

    python benchmarks/jitter.py FOLDER --json

Every photograph is shown in several crops of 224 pixels, its brightness, contrast and saturation changed each by a
factor from 0.6 to 1.4. The released code's way is Pillow's three enhancers in a random order on the whole image, each
cutting values to 8 bits, then crop and bicubic resize. Differences are in grey levels (0 to 255), over all pixels.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from printing import print_figures

from smalti.core.rng import fold
from smalti.data.datasets.folder import Folder
from smalti.data.decode import decode
from smalti.data.formats import EXTENSIONS
from smalti.data.transforms.augment import Render, channel_means, colour_matrix, recolour
from smalti.data.transforms.views import NO_JITTER, ColorJitter, RandomResizedCrop, TwoViews

STEPS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
SIZE = (224, 224)


def in_pillow(pixels: NDArray[np.uint8], factors: NDArray[np.float64], order: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Three steps, each rounded down and clamped."""
    image = Image.fromarray(pixels)
    for step in order:
        image = STEPS[step](image).enhance(factors[step])
    return np.asarray(image)


def in_one(pixels: NDArray[np.uint8], factors: NDArray[np.float64]) -> NDArray[np.uint8]:
    """One matrix, one clamp."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
    change = colour_matrix(torch.from_numpy(factors).float()[None], channel_means(image))
    changed = recolour(image, *change, torch.tensor([False]))[0]
    return (changed * 255).round().byte().permute(1, 2, 0).numpy()


def shown(folder: Folder, position: int, key: int, jitter: ColorJitter) -> NDArray[np.uint8]:
    """The patch view, H W C."""
    out = np.zeros((3, *SIZE), np.uint8)
    Render(folder, TwoViews(RandomResizedCrop(), SIZE, None, jitter))(position, key, [out])
    return out.transpose(1, 2, 0)


def compare(paths: list[Path], crops: int) -> dict[str, object]:
    """Differences of the three ways, over all photographs."""
    names = (
        "one matrix for three steps",
        "after the crop for before it",
        "both: our default against the released code",
    )
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    jitter, rng = ColorJitter(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        for number, path in enumerate(paths):
            whole = decode(path, 3)
            for crop in range(crops):
                keys = fold(0, crop, np.array([number]))
                key, factors, order = int(keys[0]), jitter(keys)[0], rng.permutation(3)
                Image.fromarray(whole).save(Path(temporary) / "0.bmp")
                view = shown(Folder(Path(temporary), 3), 0, key, NO_JITTER)
                Image.fromarray(in_one(whole, factors)).save(Path(temporary) / "0.bmp")
                early = shown(Folder(Path(temporary), 3), 0, key, NO_JITTER)
                Image.fromarray(in_pillow(whole, factors, order)).save(Path(temporary) / "0.bmp")
                released = shown(Folder(Path(temporary), 3), 0, key, NO_JITTER)
                ours = in_one(view, factors)
                pairs = ((ours, in_pillow(view, factors, order)), (ours, early), (ours, released))
                for name, (one, other) in zip(names, pairs, strict=True):
                    found[name].append(np.abs(one.astype(np.float64) - other).reshape(-1)[::7])
    summary: dict[str, object] = {"files": len(paths), "crops": crops}
    for name, parts in found.items():
        all_of_them = np.concatenate(parts)
        quantiles = {f"quantile_{q}": float(np.quantile(all_of_them, q)) for q in (0.5, 0.95, 0.99)}
        summary[name] = {"mean": round(float(all_of_them.mean()), 3)} | quantiles | {"max": float(all_of_them.max())}
    return summary


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crops", type=int, default=2, help="of each photograph")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    result = compare(paths, options.crops)
    print_figures(result, options.json)


if __name__ == "__main__":
    main()
