"""Time the two-view pipeline, from files to a normalised batch, against the usual way with torchvision and Pillow.

    python benchmarks/loader.py FOLDER --json

The usual way is the released code's order: Pillow decodes, ColorJitter works on the whole image, then flip, two resized
crops (224 bicubic, 112 Lanczos), to tensor, normalise, stack. Ours is a `Loader` with the same settings and no workers.
Both run in one process on one thread, batch after batch in turn; what counts is the median of their processor times.
The same is measured from the shards that `smalti prepare` makes of the folder.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from printing import print_figures
from torch import Tensor

from smalti.core.compute import keep_freed_memory
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.bad_files import BadFiles
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.file_list import FileList
from smalti.data.datasets.prepared import Encoding, Prepared
from smalti.data.decode import decode
from smalti.data.formats import EXTENSIONS
from smalti.data.loader import Loader, Sampler, StreamedViewSource
from smalti.data.transforms.augment import Render
from smalti.data.transforms.views import ColorJitter, RandomResizedCrop, TwoViews
from smalti.data.workers.jobs import InlineRenderer
from smalti.runs import prepare

SIZE, TOKEN_SIZE = (224, 224), (112, 112)


class Usual:
    """What a loader written with torchvision does for a batch of files."""

    def __init__(self, paths: list[Path], batch_size: int) -> None:
        from torchvision import transforms
        from torchvision.transforms import functional

        self.paths, self.batch_size, self.functional = paths, batch_size, functional
        self.jitter = transforms.ColorJitter(0.4, 0.4, 0.4)
        self.flip = transforms.RandomHorizontalFlip()
        self.box = transforms.RandomResizedCrop.get_params
        self.modes = functional.InterpolationMode
        self.normalise = transforms.Normalize([0.5] * 3, [0.5] * 3)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        places = [(step * self.batch_size + row) % len(self.paths) for row in range(self.batch_size)]
        views = [self.views(self.paths[place]) for place in places]
        return torch.stack([patch for patch, _ in views]), torch.stack([token for _, token in views])

    def views(self, path: Path) -> tuple[Tensor, Tensor]:
        """Both views of one file."""
        with open(path, "rb") as file, Image.open(file) as opened:
            image = opened.convert("RGB")
        image = self.flip(self.jitter(image))
        box, resized = self.box(image, (0.08, 1.0), (3 / 4, 4 / 3)), self.functional.resized_crop
        patch = resized(image, *box, SIZE, self.modes.BICUBIC)
        token = resized(image, *box, TOKEN_SIZE, self.modes.LANCZOS)
        to_tensor = self.functional.to_tensor
        return self.normalise(to_tensor(patch)), to_tensor(token) * 0.8 + 0.1


class Ours:
    """The same from a `Loader`; our models normalise for themselves, so that is done here in their place."""

    def __init__(self, source: ImageDataset, batch_size: int, *, before_crop: bool = False) -> None:
        jitter = ColorJitter(0.4, 0.4, 0.4, before_crop)
        views = TwoViews(RandomResizedCrop(), SIZE, TOKEN_SIZE, jitter)
        bad = BadFiles(len(source), source.name, Log(), on_bad_image="error")
        view_source = StreamedViewSource(source, views, InlineRenderer(Render(source, views)), bad, torch.device("cpu"))
        self.minus_one, self.tenth = torch.tensor(-1.0), torch.tensor(0.1)
        self.loader = Loader(view_source, Sampler(len(source), batch_size, seed=0), ahead=0)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        batch = self.loader(step)
        assert batch.token_image is not None
        image, token_image = (as_float(view) for view in (batch.image, batch.token_image))
        torch.add(self.minus_one, image, alpha=2, out=image)
        return image, torch.add(self.tenth, token_image, alpha=0.8, out=token_image)


def as_float(view: Tensor) -> Tensor:
    """[0, 1]; where colours were changed before the crop, the loader leaves 8 bits."""
    return view.float().div_(255) if view.dtype == torch.uint8 else view


def interleaved(makers: dict[str, Callable[[int], object]], steps: int) -> dict[str, float]:
    """Median processor seconds of a batch for each maker, all in turn, the order swapped from step to step."""
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for make in makers.values():
        make(0)
    for step in range(steps):
        names = list(makers)[:: 1 if step % 2 else -1]
        for name in names:
            began = time.process_time()
            makers[name](step)
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def readable(path: Path) -> bool:
    """Whether it can be read; also brings it into the cache of the system."""
    try:
        decode(path, 3)
    except DataError:
        return False
    return True


def compare(folder: Path, batch_size: int, steps: int) -> dict[str, object]:
    """Everything measured."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()  # as every run does; both ways gain by it
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and readable(path))
    with tempfile.TemporaryDirectory() as temporary:
        listing = Path(temporary) / "files.txt"
        listing.write_text("\n".join(str(path.resolve()) for path in paths) + "\n")
        pack = packed(listing, Path(temporary) / "pack", "jpeg")
        raw = packed(listing, Path(temporary) / "raw", "raw")
        seconds = interleaved(
            {
                "usual": Usual(paths, batch_size),
                "smalti": Ours(FileList(listing, 3), batch_size),
                "pack": Ours(pack, batch_size),
                "pack_raw": Ours(raw, batch_size),
                "before_crop": Ours(FileList(listing, 3), batch_size, before_crop=True),
            },
            steps,
        )
    sizes = [np.prod(Image.open(path).size) for path in paths]
    return {
        "files": len(paths),
        "pixels_median": int(np.median(sizes)),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "pillow", "simplejpeg")},
        "milliseconds_an_image": {name: round(1000 * value / batch_size, 3) for name, value in seconds.items()},
        "images_per_second_core": round(batch_size / seconds["smalti"], 1),
        "ratio_vs_reference": round(seconds["usual"] / seconds["smalti"], 3),
        "ratio_pack": round(seconds["usual"] / seconds["pack"], 3),
        "ratio_pack_raw": round(seconds["usual"] / seconds["pack_raw"], 3),
        "ratio_before_crop": round(seconds["usual"] / seconds["before_crop"], 3),
    }


def packed(listing: Path, out: Path, encoding: Encoding) -> ImageDataset:
    """What `smalti prepare` makes of a list of files."""
    prepare.main(prepare.Prepare(data=str(listing), out=str(out), encoding=encoding))
    return Prepared(out, 3)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--steps", type=int, default=40, help="batches of each")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    result = compare(options.folder, options.batch_size, options.steps)
    print_figures(result, options.json)


if __name__ == "__main__":
    main()
