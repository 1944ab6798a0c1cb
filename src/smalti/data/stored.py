"""What folders, lists and shards have in common: images that are decoded when asked for."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from smalti.core.contracts import Sample
from smalti.data.decode import decode_bytes
from smalti.data.listing import LeftOut


class Stored(ABC):
    """A source on the disk, a `Source` of `core/contracts.py`. A subclass says where the bytes are.

    Attributes:
        kind: what DATA was, in a word.
        labels: a class number for each image; None where `classes` is empty.
        left_out: what lies beside the images and was not taken.
        notes: what a user should know before training, a sentence each.
    """

    kind: str
    channels: int
    classes: tuple[str, ...] = ()
    labels: NDArray[np.int32] | None = None
    left_out: LeftOut
    notes: tuple[str, ...] = ()

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
        label = -1 if self.labels is None else int(self.labels[index])
        return Sample(decode_bytes(data, self.name(index), self.channels, shorter_side), label, self.key(index))

    def _sample(self, index: int, shorter_side: int | None) -> Sample:
        position = range(len(self))[index]
        return self.decoded(position, self.read(position), shorter_side)
