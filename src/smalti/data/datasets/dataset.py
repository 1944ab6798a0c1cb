"""What folders, lists and shards have in common: images that are decoded when asked for."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from smalti.core.contracts import Sample
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.listing import LeftOut
from smalti.data.decode import decode_bytes


class ImageDataset(ABC):
    """A source on the disk, a `Source` of `core/contracts.py`. A subclass says where the bytes are.

    Attributes:
        kind: what DATA was, in a word.
        labels: a class number for each image; None where `classes` is empty.
        left_out: what lies beside the images and was not taken.
        digest: of the content, where that was recorded when it was written.
        notes: what a user should know before training, a sentence each.
    """

    kind: str
    channels: int
    classes: tuple[str, ...] = ()
    labels: NDArray[np.int32] | None = None
    left_out: LeftOut
    notes: tuple[str, ...] = ()
    digest: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The file of an image as it is.

        Raises:
            DataError: it cannot be read.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Where the image is, for people."""

    @abstractmethod
    def key(self, index: int) -> str:
        """What the image is called within this source."""

    def read_many(self, indices: Sequence[int]) -> list[bytes | DataError]:
        """The files of several images, or what is wrong with one; faster than one by one where the store allows it."""
        return [self._attempt(index) for index in indices]

    def label(self, index: int) -> int:
        """The class number of an image, -1 where it has none."""
        return -1 if self.labels is None else int(self.labels[index])

    def length(self, index: int) -> int:
        """Bytes of an image's file where that is cheap to know, else 0."""
        return 0

    def fingerprint(self) -> str:
        """A digest of all names, labels and lengths; the same wherever the same files lie."""
        digest = hashlib.sha256(repr(self.classes).encode(errors="surrogateescape"))
        for index in range(len(self)):
            digest.update(
                f"{self.key(index)}\0{self.length(index)}\0{self.label(index)}\n".encode(errors="surrogateescape")
            )
        return digest.hexdigest()

    def verify(self, log: Log) -> None:  # noqa: B027
        """Read everything and compare it with the digests that were recorded, where there are any.

        Raises:
            DataError: a file is damaged; it says which.
        """

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

    def _attempt(self, index: int) -> bytes | DataError:
        try:
            return self.read(index)
        except DataError as error:
            return error

    def _sample(self, index: int, shorter_side: int | None) -> Sample:
        position = range(len(self))[index]
        return self.decoded(position, self.read(position), shorter_side)


class Subset(ImageDataset):
    """Some of the images of another source, in the given order."""

    def __init__(self, whole: ImageDataset, positions: NDArray[np.int64]) -> None:
        self.whole, self.positions = whole, positions
        self.kind, self.channels, self.classes = whole.kind, whole.channels, whole.classes
        self.labels = None if whole.labels is None else whole.labels[positions]
        self.left_out, self.notes = whole.left_out, whole.notes

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, index: int) -> bytes:
        return self.whole.read(int(self.positions[index]))

    def read_many(self, indices: Sequence[int]) -> list[bytes | DataError]:
        return self.whole.read_many(self.positions[list(indices)].tolist())

    def name(self, index: int) -> str:
        return self.whole.name(int(self.positions[index]))

    def key(self, index: int) -> str:
        return self.whole.key(int(self.positions[index]))

    def length(self, index: int) -> int:
        return self.whole.length(int(self.positions[index]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.whole.fingerprint().encode() + self.positions.astype("<i8").tobytes()).hexdigest()
