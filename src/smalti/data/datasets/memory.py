"""Images in memory, and those that come with the package."""

import hashlib
import json
import lzma
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from smalti.data import npy
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.names import LeftOut


class InMemoryDataset(ImageDataset):
    """Images of one size, held in memory: what small-image training reads, a whole batch at a time.

    Args:
        images: n C H W, uint8, C = 1 or 3.
        labels: n class numbers, -1 where there is none.
        classes: names by class number.
    """

    kind = "embedded"

    def __init__(
        self, images: UInt8[Tensor, "n C H W"], labels: Int[Tensor, "n"], classes: tuple[str, ...] = ()
    ) -> None:
        self.images = self.pixels = images
        self.labels, self.classes = labels, classes
        self.channels, self.left_out = images.shape[1], LeftOut()

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes:
        return npy.encode(self.images[index].permute(1, 2, 0).numpy())

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def labels_at(self, indices: NDArray[np.int64]) -> Int[Tensor, "B"]:
        return self.labels[torch.from_numpy(indices)]

    def key(self, index: int) -> str:
        """Its number: there is no file."""
        return str(index)

    def name(self, index: int) -> str:
        return self.key(index)

    def fingerprint(self) -> str:
        """A digest of all pixels and labels."""
        digest = hashlib.sha256(repr((self.classes, tuple(self.images.shape))).encode(errors="surrogateescape"))
        digest.update(self.labels.numpy().tobytes())
        for image in self.images:
            digest.update(image.numpy().tobytes())
        return digest.hexdigest()

    def with_channels(self, channels: int) -> "InMemoryDataset":
        """Grey images, repeated without a copy where RGB is wanted."""
        return InMemoryDataset(self.images.expand(-1, channels, -1, -1), self.labels, self.classes)

    def select(self, positions: Int[Tensor, "m"] | NDArray[np.int64]) -> "InMemoryDataset":
        index = torch.as_tensor(positions)
        return InMemoryDataset(self.images[index], self.labels[index], self.classes)


def embedded(split: str) -> InMemoryDataset:
    """The labelled images inside the package: 20 000 (`train`) or 5 000 (`test`) of Fashion-MNIST, 28 x 28 grey."""
    folder = resources.files("smalti.data") / "embedded"
    about = json.loads((folder / "fashion-mnist.json").read_text())
    packed = (folder / about["splits"][split]["file"]).read_bytes()
    height, width = about["tile"]
    pixels = np.frombuffer(lzma.decompress(packed), np.uint8).reshape(-1, width, height).transpose(0, 2, 1)
    images = torch.from_numpy(np.ascontiguousarray(pixels))[:, None]
    return InMemoryDataset(images, torch.arange(len(images)) % len(about["classes"]), tuple(about["classes"]))


def embedded_photographs() -> Path:
    """The folder of public-domain photographs inside the package, for pictures."""
    return Path(str(resources.files("smalti.data") / "embedded" / "photographs"))
