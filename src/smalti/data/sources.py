"""Where images come from. A source is random access by position; `open_source` turns DATA into one."""

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from smalti.core.contracts import Sample
from smalti.core.errors import DataError
from smalti.data.decode import EXTENSIONS, decode


class Folder:
    """A folder of image files, searched recursively, in sorted order.

    Where every image lies in a sub-folder, the first level of sub-folders are the classes. Symbolic links to files are
    followed, links to folders are not (a loop would multiply the data). Hidden files are left out.
    """

    def __init__(self, root: Path, channels: int) -> None:
        self.root, self.channels = root, channels
        self.paths = sorted(_image_files(root))
        if not self.paths:
            raise DataError(f"no images in {root}", cause="no file there has an image's extension", fix="check --data")
        parents = [path.relative_to(root).parts[:-1] for path in self.paths]
        self.classes = tuple(sorted({parts[0] for parts in parents})) if all(parents) else ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        return Sample(decode(path, self.channels), self._label(path), str(path.relative_to(self.root)))

    def shrunk(self, index: int, shorter_side: int) -> Sample:
        """The same image, decoded to a shorter side of about `shorter_side` pixels at less cost."""
        path = self.paths[index]
        return Sample(decode(path, self.channels, shorter_side), self._label(path), str(path.relative_to(self.root)))

    def _label(self, path: Path) -> int:
        return self.classes.index(path.relative_to(self.root).parts[0]) if self.classes else -1


def _image_files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if not entry.is_symlink():
                yield from _image_files(entry)
        elif entry.suffix.lower() in EXTENSIONS and entry.is_file():
            yield entry


@dataclass(frozen=True)
class Resident:
    """Images of one size, held in memory: what small-image training reads, a whole batch at a time."""

    images: UInt8[Tensor, "n C H W"]
    labels: Int[Tensor, "n"]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        pixels = self.images[index].permute(1, 2, 0).numpy()
        return Sample(pixels, int(self.labels[index]), str(index))

    def select(self, positions: Int[Tensor, "m"] | NDArray[np.int64]) -> "Resident":
        """Some of the images, in the given order."""
        index = torch.as_tensor(positions)
        return Resident(self.images[index], self.labels[index], self.classes)


def embedded(split: str) -> Resident:
    """The labelled images inside the package: 20 000 (`train`) or 5 000 (`test`) of Fashion-MNIST, 28 x 28 grey."""
    folder = resources.files("smalti.data") / "embedded"
    about = json.loads((folder / "fashion-mnist.json").read_text())
    packed = (folder / about["splits"][split]["file"]).read_bytes()
    height, width = about["tile"]
    pixels = np.frombuffer(lzma.decompress(packed), np.uint8).reshape(-1, width, height).transpose(0, 2, 1)
    images = torch.from_numpy(np.ascontiguousarray(pixels))[:, None]
    return Resident(images, torch.arange(len(images)) % len(about["classes"]), tuple(about["classes"]))


def embedded_photographs() -> Path:
    """The folder of public-domain photographs inside the package, for pictures."""
    return Path(str(resources.files("smalti.data") / "embedded" / "photographs"))
