"""The dataset protocol: encoded images by index, with labels and names; base classes for disk and memory."""

import hashlib
import json
import lzma
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from smalti.core.config import require
from smalti.core.contracts import Sample
from smalti.core.errors import DataError
from smalti.core.files import sha256
from smalti.core.log import Log
from smalti.data import npy
from smalti.data.datasets.labels import NONE, Classes
from smalti.data.datasets.names import LeftOut
from smalti.data.decode import decode_bytes
from smalti.data.values import Window


@runtime_checkable
class ImageDataset(Protocol):
    """Deterministic random access to images. A subclass implements the five abstract methods and inherits the others.

    Attributes:
        kind: the kind of DATA, in a word.
        channels: the channels of decoded images: 1 (grey), 3 (RGB), or as many as the files have.
        classes: class names by class number; empty if there are no labels.
        left_out: files that were found beside the images and skipped.
        notes: what a user should know before training, one sentence each.
        no_labels: where there are none, what was looked for and what is there.
        digest: the digest of the content, if one was recorded when the dataset was written, else empty.
        pixels: all images, if they are in memory and of one size: uint8, (n, C, H, W), 0 to 255; else None.
        in_order: whether only sequential reading is fast; such a dataset should be read into memory or prepared.
        groups: a number for each image, the same for images that stay on one side of a split; None: no such groups.
        window: the stored values that become 0 and 255 when an image is decoded; None: all that its format has.
        made_window: those that became 0 and 255 when the images were prepared, which is not done a second time.
    """

    kind: str
    channels: int
    left_out: LeftOut
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    no_labels: str = ""
    digest: str = ""
    pixels: UInt8[Tensor, "n C H W"] | None = None
    in_order: bool = False
    window: Window | None = None
    made_window: Window | None = None
    groups: NDArray[np.int64] | None = None

    def describe_as(self, source: "ImageDataset") -> None:
        """Take over from the dataset that the images of this one are in whatever is true of all of its images."""
        self.kind, self.channels, self.classes = source.kind, source.channels, source.classes
        self.left_out, self.notes, self.no_labels = source.left_out, source.notes, source.no_labels
        self.in_order, self.window, self.made_window = source.in_order, source.window, source.made_window

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded bytes of an image file, for pixels in memory of an `.npy` file; a `DataError` if unreadable."""

    @abstractmethod
    def label(self, index: int) -> int:
        """The class number of an image, -1 if it has none."""

    @abstractmethod
    def key(self, index: int) -> str:
        """The name of an image within this dataset."""

    @abstractmethod
    def name(self, index: int) -> str:
        """A readable location of an image, for messages."""

    def labels_at(self, indices: NDArray[np.int64]) -> Int[Tensor, "B"]:
        """The class numbers of several images, -1 for none: int64, (B,), as `indices` are."""
        return torch.tensor([self.label(index) for index in indices.tolist()], dtype=torch.int64)

    def all_labels(self) -> Int[Tensor, "n"]:
        return self.labels_at(np.arange(len(self)))

    def present_classes(self) -> tuple[str, ...]:
        """The names of the classes that some image has."""
        return tuple(self.classes[number] for number in self.all_labels().unique().tolist() if number >= 0)

    def labelled(self) -> "ImageDataset":
        """The images that have a label."""
        has = np.flatnonzero(self.all_labels().numpy() >= 0)
        return self if len(has) == len(self) else self.select(has)

    def length(self, index: int) -> int:
        """The size of an image's file in bytes if that is cheap to find out, else 0."""
        return 0

    def column(self, name: str) -> list[str | None]:
        """The cells of a column of the table that the images are in, None for empty ones; raises if there is none."""
        cause = f"DATA of the kind {self.kind} has no columns"
        fix = "give a list (.csv .tsv) or a table, or a regular expression for paths, as '^([^/]+)/'"
        raise DataError(f"no column {name}", cause=cause, fix=fix)

    def fingerprint(self) -> str:
        """A digest of all names, labels and file sizes; it does not depend on where the files are stored."""
        digest = hashlib.sha256(repr(self.classes).encode(errors="surrogateescape"))
        for index in range(len(self)):
            line = f"{self.key(index)}\0{self.length(index)}\0{self.label(index)}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def verify(self, log: Log) -> None:
        """Compare all files with the digests that were recorded, if any were; a `DataError` names a damaged one."""
        return

    def select(self, positions: NDArray[np.int64]) -> "ImageDataset":
        """A subset of the images, in the order of `positions` (int64, (m,))."""
        return Subset(self, positions)

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index, None)

    def shrunk(self, index: int, shorter_side: int) -> Sample:
        """The sample at `index`, decoded at reduced cost to a shorter side of about `shorter_side` pixels."""
        return self._sample(index, shorter_side)

    def decoded(self, index: int, data: bytes, shorter_side: int | None) -> Sample:
        """Decode an image whose bytes, as `read` returns them, have been read already; raises as `decode`.

        Args:
            shorter_side: the shorter side to decode to, in pixels, approximately; None for full size.
        """
        pixels = decode_bytes(data, self.name(index), self.channels, shorter_side, self.window)
        return Sample(pixels, self.label(index), self.key(index))

    def _sample(self, index: int, shorter_side: int | None) -> Sample:
        position = range(len(self))[index]
        return self.decoded(position, self.read(position), shorter_side)


class StoredDataset(ImageDataset):
    """Images stored in files. A subclass implements where the bytes are.

    Attributes:
        labels: the class number of each image, int32, shape (n,), -1 for none; None if `classes` is empty.
    """

    labels: NDArray[np.int32] | None = None

    def take_labels(self, found: Classes) -> None:
        """Set the labels and the class names, and note what is to be said of them."""
        self.labels, self.classes = found.numbers if found.names else None, found.names
        self.notes = (*self.notes, *found.notes)

    def label(self, index: int) -> int:
        return -1 if self.labels is None else int(self.labels[index])

    def all_labels(self) -> Int[Tensor, "n"]:
        return super().all_labels() if self.labels is None else torch.from_numpy(self.labels.astype(np.int64))


class Subset(ImageDataset):
    """A subset of another dataset, in the order of `positions` (int64, shape (m,))."""

    def __init__(self, whole: ImageDataset, positions: NDArray[np.int64]) -> None:
        self.whole, self.positions = whole, positions
        self.describe_as(whole)
        self.groups = None if whole.groups is None else whole.groups[positions]

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, index: int) -> bytes:
        return self.whole.read(int(self.positions[index]))

    def label(self, index: int) -> int:
        return self.whole.label(int(self.positions[index]))

    def key(self, index: int) -> str:
        return self.whole.key(int(self.positions[index]))

    def name(self, index: int) -> str:
        return self.whole.name(int(self.positions[index]))

    def length(self, index: int) -> int:
        return self.whole.length(int(self.positions[index]))

    def column(self, name: str) -> list[str | None]:
        found = self.whole.column(name)
        return [found[position] for position in self.positions.tolist()]

    def verify(self, log: Log) -> None:
        self.whole.verify(log)

    def fingerprint(self) -> str:
        return sha256(self.whole.fingerprint().encode() + self.positions.astype("<i8").tobytes())


class Renumbered(Subset):
    """All images of another dataset, with other class numbers.

    Args:
        classes: all classes of `whole`, and perhaps more, in the new order.
    """

    def __init__(self, whole: ImageDataset, classes: tuple[str, ...]) -> None:
        super().__init__(whole, np.arange(len(whole)))
        place = {name: number for number, name in enumerate(classes)}
        self.classes, self.numbers = classes, [place[name] for name in whole.classes]

    def label(self, index: int) -> int:
        label = super().label(index)
        return self.numbers[label] if label >= 0 else NONE

    def fingerprint(self) -> str:
        return sha256(f"{self.whole.fingerprint()}{self.classes}".encode(errors="surrogateescape"))


class InMemoryDataset(ImageDataset):
    """Images of one size, held in memory; small-image training reads them a whole batch at a time.

    Args:
        images: 0 to 255, any C.
        labels: class numbers; -1 for none.
        classes: class names by class number.
        groups: a number for each image, as of every dataset; or None.

    Raises:
        UsageError: images or labels have another shape or type.
    """

    kind = "embedded"

    def __init__(
        self,
        images: UInt8[Tensor, "n C H W"],
        labels: Int[Tensor, "n"],
        classes: tuple[str, ...] = (),
        groups: NDArray[np.int64] | None = None,
    ) -> None:
        for what, given, dims, kind, shape in (
            ("images", images, 4, torch.uint8, "uint8 n x C x H x W, 0 to 255"),
            ("labels", labels, 1, torch.int64, "int64, a class number for each image, -1 for none"),
        ):
            found = f"{type(given).__name__} of {getattr(given, 'dtype', None)}, {tuple(getattr(given, 'shape', ()))}"
            fits = isinstance(given, Tensor) and given.ndim == dims and given.dtype == kind
            require(fits and len(given) == len(images), f"{what} in memory are a {found}", f"give a tensor, {shape}")
        self.images = self.pixels = images
        self.labels, self.classes, self.groups = labels, classes, groups
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
        return str(index)

    def name(self, index: int) -> str:
        return self.key(index)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.classes, tuple(self.images.shape))).encode(errors="surrogateescape"))
        digest.update(self.labels.numpy().tobytes())
        for image in self.images:
            digest.update(image.numpy().tobytes())
        return digest.hexdigest()

    def labelled(self) -> "InMemoryDataset":
        has = torch.nonzero(self.labels >= 0)[:, 0]
        return self if len(has) == len(self) else self.select(has)

    def with_channels(self, channels: int) -> "InMemoryDataset":
        """The same grey images with `channels` channels; for RGB the grey channel is repeated without a copy."""
        return InMemoryDataset(self.images.expand(-1, channels, -1, -1), self.labels, self.classes, self.groups)

    def select(self, positions: Int[Tensor, "m"] | NDArray[np.int64]) -> "InMemoryDataset":
        index = torch.as_tensor(positions)
        groups = None if self.groups is None else self.groups[index.numpy()]
        return InMemoryDataset(self.images[index], self.labels[index], self.classes, groups)


def place_in(ends: Sequence[int], position: int) -> tuple[int, int]:
    """The part that an image lies in, and its position there, where parts follow one another and end at `ends`."""
    part = bisect_right(ends, position)
    return part, position - (ends[part - 1] if part else 0)


def embedded(split: str) -> InMemoryDataset:
    """The labelled images in the package: 20 000 (`train`) or 5 000 (`test`) of Fashion-MNIST, 28 x 28 grey."""
    folder = resources.files("smalti.data") / "embedded"
    about = json.loads((folder / "fashion-mnist.json").read_text())
    packed = (folder / about["splits"][split]["file"]).read_bytes()
    height, width = about["tile"]
    pixels = np.frombuffer(lzma.decompress(packed), np.uint8).reshape(-1, width, height).transpose(0, 2, 1)
    images = torch.from_numpy(np.ascontiguousarray(pixels))[:, None]
    return InMemoryDataset(images, torch.arange(len(images)) % len(about["classes"]), tuple(about["classes"]))


def embedded_photographs() -> Path:
    """The folder of public-domain photographs in the package, for pictures."""
    return Path(str(resources.files("smalti.data") / "embedded" / "photographs"))
