"""What every dataset is: encoded images by position, with labels and names; a part of one; those on a disk."""

import hashlib
from abc import abstractmethod
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from smalti.core.contracts import Sample
from smalti.core.log import Log
from smalti.data.datasets.names import LeftOut
from smalti.data.decode import decode_bytes


@runtime_checkable
class ImageDataset(Protocol):
    """Random access to images, the same every time. A class that has the five abstract methods has all others.

    Attributes:
        kind: what DATA was, in a word.
        channels: of decoded images, 1 grey or 3 RGB.
        classes: names by class number; empty where there are no labels.
        left_out: what lies beside the images and was not taken.
        notes: what a user should know before training, a sentence each.
        digest: of the content, where that was recorded when it was written.
        pixels: all images, where they are in memory and of one size: uint8, n C H W.
        in_order: other orders than that from the first to the last are slow: to be read into memory, or prepared.
    """

    kind: str
    channels: int
    left_out: LeftOut
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    digest: str = ""
    pixels: UInt8[Tensor, "n C H W"] | None = None
    in_order: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The file of an image as it is; of pixels in memory, an `.npy` file.

        Raises:
            DataError: it cannot be read.
        """

    @abstractmethod
    def label(self, index: int) -> int:
        """The class number of an image, -1 where it has none."""

    @abstractmethod
    def key(self, index: int) -> str:
        """What the image is called within this dataset."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where the image is, for people."""

    def labels_at(self, indices: NDArray[np.int64]) -> Int[Tensor, "B"]:
        """The class numbers of several images."""
        return torch.tensor([self.label(index) for index in indices.tolist()], dtype=torch.int64)

    def all_labels(self) -> Int[Tensor, "n"]:
        """The class numbers of all images."""
        return self.labels_at(np.arange(len(self)))

    def length(self, index: int) -> int:
        """Bytes of an image's file where that is cheap to know, else 0."""
        return 0

    def fingerprint(self) -> str:
        """A digest of all names, labels and lengths; the same wherever the same files lie."""
        digest = hashlib.sha256(repr(self.classes).encode(errors="surrogateescape"))
        for index in range(len(self)):
            line = f"{self.key(index)}\0{self.length(index)}\0{self.label(index)}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def verify(self, log: Log) -> None:
        """Read everything and compare it with the digests that were recorded, where there are any.

        Raises:
            DataError: a file is damaged; it says which.
        """
        return

    def select(self, positions: NDArray[np.int64]) -> "ImageDataset":
        """Some of the images, in the given order."""
        return Subset(self, positions)

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index, None)

    def shrunk(self, index: int, shorter_side: int) -> Sample:
        """The same image, decoded to a shorter side of about `shorter_side` pixels at less cost."""
        return self._sample(index, shorter_side)

    def decoded(self, index: int, data: bytes, shorter_side: int | None) -> Sample:
        """An image of which the bytes have been read already.

        Raises:
            DataError: it cannot be decoded.
        """
        pixels = decode_bytes(data, self.name(index), self.channels, shorter_side)
        return Sample(pixels, self.label(index), self.key(index))

    def _sample(self, index: int, shorter_side: int | None) -> Sample:
        position = range(len(self))[index]
        return self.decoded(position, self.read(position), shorter_side)


class StoredDataset(ImageDataset):
    """Images on a disk. A subclass says where the bytes are.

    Attributes:
        labels: a class number for each image; None where `classes` is empty.
    """

    labels: NDArray[np.int32] | None = None

    def label(self, index: int) -> int:
        return -1 if self.labels is None else int(self.labels[index])


class Subset(ImageDataset):
    """Some of the images of another dataset, in the given order."""

    def __init__(self, whole: ImageDataset, positions: NDArray[np.int64]) -> None:
        self.whole, self.positions = whole, positions
        self.kind, self.channels, self.classes = whole.kind, whole.channels, whole.classes
        self.left_out, self.notes, self.in_order = whole.left_out, whole.notes, whole.in_order

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

    def fingerprint(self) -> str:
        return hashlib.sha256(self.whole.fingerprint().encode() + self.positions.astype("<i8").tobytes()).hexdigest()
