"""Images in zip archives, read in place: a folder that was packed is read as the folder."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smalti.core.errors import DataError
from smalti.data.datasets.dataset import StoredDataset
from smalti.data.datasets.folder import IsImage, take_folders
from smalti.data.datasets.names import LeftOut, has_array_suffix, has_image_suffix
from smalti.data.datasets.tar_index import DUPLICATE
from smalti.data.datasets.zip_members import ZipPlace, images_of


class Zips(StoredDataset):
    """The images of zip archives, or of a folder inside of them, in sorted order; classes are those of a `Folder`.

    Archives are opened for each image, so threads and workers read at once, and images in any order.
    """

    kind = "zip"

    def __init__(self, place: ZipPlace, channels: int) -> None:
        self.place, self.channels, self.left_out = place, channels, LeftOut()
        self.files, self.archives = images_of(place)
        self.inner = f"{place.inner}/" if place.inner else ""
        for name, images in zip(self.files.names, self.archives, strict=True):
            self.left_out.merge(images.left_out, f"{name}/" if len(self.archives) > 1 else "")
        folder = str(Path(self.files.names[0]) / place.inner)
        self.where = self._sorted(has_image_suffix)
        if not len(self.where):  # arrays are images where there are no others
            self.where = self._sorted(has_array_suffix)
        if not len(self.where):
            found = self.left_out.suffix_line()
            cause = "no member has an image's extension" + (f"; there are {found}" if found else "")
            raise DataError(f"no images in {folder}", cause=cause, fix="check the path")
        take_folders(self, (os.fsencode(self.key(index)) for index in range(len(self))), folder)

    def _sorted(self, is_image: IsImage) -> NDArray[np.int64]:
        """Archive and row of each image in the folder, in the order of their names.

        Of several archives that have the same name, the first counts.
        """
        found: dict[bytes, tuple[int, int]] = {}
        for number, images in enumerate(self.archives):
            for row in range(len(images.names)):
                name = images.names[row]
                if not (name.startswith(os.fsencode(self.inner)) and is_image(name)):
                    continue
                if found.setdefault(name, (number, row)) != (number, row):
                    self.left_out.add(DUPLICATE, name)
        ordered = sorted(found, key=lambda name: name.split(b"/"))  # as `walk` has them
        return np.array([found[name] for name in ordered], np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.where)

    def _at(self, index: int) -> tuple[int, int]:
        number, row = self.where[range(len(self))[index]].tolist()
        return number, row

    def read(self, index: int) -> bytes:
        number, row = self._at(index)
        try:
            with self.files.open(number) as file:
                return self.archives[number].unpacked(file, row)
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or str(error)
            raise DataError(f"cannot read {self.name(index)}", cause=cause) from error

    def key(self, index: int) -> str:
        number, row = self._at(index)
        return os.fsdecode(self.archives[number].names[row])[len(self.inner) :]

    def name(self, index: int) -> str:
        number, row = self._at(index)
        return f"{self.files.names[number]}/{os.fsdecode(self.archives[number].names[row])}"

    def length(self, index: int) -> int:
        number, row = self._at(index)
        return int(self.archives[number].numbers[row, 2])
