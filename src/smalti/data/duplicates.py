"""Duplicates: identical images (by digest) in one dataset or two, and nearly identical ones (by a perceptual hash)."""

import hashlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smalti.core.errors import DataError
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.reading import even_sample
from smalti.data.splits import UnionFind

_BANDS = 4
_MAX_TEST, _MAX_ALIKE = 1000, 10_000
_MAX_BAND = 4096
"""Different hashes in a band beyond which only equal ones are found; millions of nearly empty pictures get there."""


def content_digest(data: bytes) -> tuple[int, int]:
    """The first half of the SHA-256 of `data`, as two 64-bit numbers."""
    both = hashlib.sha256(data).digest()
    return int.from_bytes(both[:8], "big"), int.from_bytes(both[8:16], "big")


def content_digests(images: ImageDataset) -> NDArray[np.uint64]:
    """A uint64 for each image, equal for copies: of its pixels, if in memory, else of its name in the dataset."""
    pixels = images.pixels
    contents = map(images.key, range(len(images))) if pixels is None else (image.numpy().tobytes() for image in pixels)
    return np.array([content_digest(c if isinstance(c, bytes) else os.fsencode(c))[0] for c in contents], np.uint64)


def copies(images: ImageDataset) -> NDArray[np.int64]:
    """For each image the position of the first one that it is a copy of, or its own; see `content_digests`."""
    _, first, which = np.unique(content_digests(images), return_index=True, return_inverse=True)
    return first[which].astype(np.int64)


class Overlap(NamedTuple):
    """How many of the images that a result is of are training images too, and of how many."""

    shared: int
    looked_at: int

    def __str__(self) -> str:
        many = "all" if self.shared == self.looked_at else f"{self.shared} of"
        return f"{many} {self.looked_at} test images are among the training images too, which flatters the result"


def overlap(train: ImageDataset, test: ImageDataset) -> Overlap:
    """Find the images of `test` among those of `train`: by their pixels if both are in memory, else by their files.

    Of files, up to 1000 of `test` are compared, and of `train` up to 10 000 that have the length of one of these.
    """
    if train.pixels is not None and test.pixels is not None:
        found = np.isin(content_digests(test), content_digests(train))
        return Overlap(int(found.sum()), len(found))
    wanted = [_file(test, place) for place in even_sample(len(test), _MAX_TEST)]
    lengths = {length for length, _ in wanted}
    alike = [place for place in range(len(train)) if train.length(place) in lengths]
    known = {_file(train, alike[at]) for at in even_sample(len(alike), _MAX_ALIKE)}
    return Overlap(sum(one in known for one in wanted if one[0]), len(wanted))


def _file(source: ImageDataset, place: int) -> tuple[int, tuple[int, int]]:
    """The length of an image's file and its digest; 0 for one that cannot be read."""
    try:
        data = source.read(place)
    except DataError:
        data = b""
    return len(data), content_digest(data)


def difference_hash(image: NDArray[np.uint8]) -> tuple[int, int]:
    """In an 8 x 8 grid, whether the image gets brighter from left to right, and from top to bottom: 64 bits each.

    They stay the same, or nearly, when an image is saved in another format, quality or size. Both are needed: with one
    alone, images of an object on a plain background are all alike. A single colour gives zeros.
    """
    grey = image[..., 0] if image.shape[2] == 1 else image
    if image.shape[2] not in (1, 3):
        grey = np.rint(image.mean(2)).astype(np.uint8)
    picture = Image.fromarray(grey).convert("L")
    wide, high = (np.asarray(picture.resize(size, Image.Resampling.BOX)) for size in ((9, 8), (8, 9)))
    return _bits(wide[:, 1:] > wide[:, :-1]), _bits(high[1:] > high[:-1])


def _bits(flags: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(flags).tobytes(), "big")


def equal_rows(rows: NDArray[np.uint64]) -> list[list[int]]:
    """Groups of at least two indices of equal rows, sorted by their first index."""
    order = np.lexsort(rows.T[::-1])
    ends = np.flatnonzero((rows[order[1:]] != rows[order[:-1]]).any(1)) + 1
    lengths = np.diff(np.concatenate([[0], ends, [len(rows)]]))
    starts = np.concatenate([[0], ends])[lengths > 1]
    groups = (order[start : start + length] for start, length in zip(starts, lengths[lengths > 1], strict=True))
    return sorted(group.tolist() for group in groups)


def near_rows(rows: NDArray[np.uint64], distance: int) -> list[list[int]]:
    """Groups of indices of difference hashes linked by steps of at most `distance` bits (0 to 3) in either number.

    Images of a single colour are not duplicates of each other. Two numbers that differ in at most 3 of 64 bits agree in
    at least one of four bands of 16 bits; so only hashes that share a band are compared.
    """
    places = np.flatnonzero(rows.any(1))
    values, which = np.unique(rows[places], axis=0, return_inverse=True)
    linked = UnionFind(len(values))
    for one, other in _close_pairs(values, distance):
        linked.union(one, other)
    groups = equal_rows(np.array([linked.find(value) for value in which.ravel().tolist()], np.uint64)[:, None])
    return [places[group].tolist() for group in groups]


def _close_pairs(values: NDArray[np.uint64], distance: int) -> Iterator[tuple[int, int]]:
    for band in range(_BANDS if distance else 0):
        keys = (values[:, 0] >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            if 1 < len(members) <= _MAX_BAND:
                for number, one in enumerate(members[:-1].tolist(), start=1):
                    apart = np.bitwise_count(values[members[number:]] ^ values[one]).max(1)
                    yield from ((one, int(other)) for other in members[number:][apart <= distance])
