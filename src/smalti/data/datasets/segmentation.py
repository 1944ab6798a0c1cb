"""Photographs with the class of every pixel: a folder of images and a folder of masks, by the same names."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.dataset import Subset
from smalti.data.datasets.folder import Folder
from smalti.data.datasets.listing import FollowLinks
from smalti.data.label_maps import Numbering, read_ids
from smalti.data.reading import each, even_sample


class Scene(NamedTuple):
    """An image, and the class of each of its pixels, or VOID."""

    image: UInt8[np.ndarray, "H W C"]
    label_map: UInt8[np.ndarray, "H W"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images and where their masks lie. Both are read whenever they are looked at; any two may differ in size."""

    images: Subset
    masks: Path

    def __len__(self) -> int:
        return len(self.images)

    def mask(self, index: int) -> Path:
        """The file of a mask."""
        return self.masks / Path(self.images.key(index)).with_suffix(".png")

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "H W C"], UInt8[np.ndarray, "H W"]]:
        """An image, and the ids in its mask.

        Raises:
            DataError: one of them cannot be read, or they do not fit.
        """
        image: UInt8[np.ndarray, "H W C"] = self.images[index].image
        return image, read_ids(self.mask(index), (image.shape[0], image.shape[1]))

    def select(self, positions: NDArray[np.int64] | Sequence[int]) -> "Pairs":
        """Some of them, in the given order."""
        return Pairs(Subset(self.images, np.asarray(positions, np.int64)), self.masks)

    def present(self, log: Log) -> dict[int, Path]:
        """The ids that occur, and a mask that each stands in. Every pair is read: nothing is found wrong later.

        Raises:
            DataError: the first that cannot be read, or does not fit.
        """
        found: dict[int, Path] = {}
        title = f"read {self.masks}"
        with each(lambda index: np.unique(self.read(index)[1]), range(len(self)), log, title) as present:
            for index, ids in present:
                if isinstance(ids, DataError):
                    raise ids
                found |= {number: self.mask(index) for number in ids.tolist() if number not in found}
        return found


def open_pairs(root: Path, images: str, masks: str, channels: int, follow: FollowLinks, limit: int | None) -> Pairs:
    """The images of one folder inside `root`, with their masks in another one.

    Raises:
        DataError: a folder or a mask is missing.
    """
    for name, kind in ((images, "images"), (masks, "masks")):
        if not (root / name).is_dir():
            fix = f"segmentation reads {root / images} and {root / masks}; other names: --task.images, --task.masks"
            raise DataError(f"no folder of {kind} {root / name}", cause="it does not exist", fix=fix)
    source = Folder(root / images, channels, follow=follow)
    pairs = Pairs(Subset(source, np.array(even_sample(len(source), limit))), root / masks)
    missing = [index for index in range(len(pairs)) if not pairs.mask(index).is_file()]
    if missing:
        first, count = missing[0], f"{len(missing)} of {len(pairs)} images have no mask"
        raise DataError(count, cause=f"{pairs.images.name(first)} is the first", fix=f"it needs {pairs.mask(first)}")
    return pairs


@dataclass(frozen=True, eq=False)
class SegmentationDataset:
    """A `Pairs` whose ids are known as classes. It is never held in memory."""

    pixels: ClassVar[None] = None
    pairs: Pairs
    numbering: Numbering
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Scene:
        image, ids = self.pairs.read(index)
        return Scene(image, self.numbering(ids))

    def name(self, index: int) -> str:
        """What an image is called, for people."""
        return self.pairs.images.key(index)

    def select(self, positions: NDArray[np.int64] | Sequence[int]) -> "SegmentationDataset":
        """Some of them, in the given order."""
        return SegmentationDataset(self.pairs.select(positions), self.numbering, self.classes)

    def fingerprint(self) -> str:
        """A digest of the names and lengths of images and masks."""
        digest = hashlib.sha256(self.pairs.images.fingerprint().encode())
        for index in range(len(self)):
            digest.update(f"{self.pairs.mask(index).stat().st_size}\n".encode())
        return digest.hexdigest()


class SceneImages(NamedTuple):
    """What a run learns from and what it makes choices on; no image is in both."""

    train: SegmentationDataset
    held_out: SegmentationDataset
