"""What Parquet and Arrow files have in common: an image is a cell of a column, called by its file and row."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from smalti.core.errors import DataError
from smalti.data.datasets.dataset import StoredDataset
from smalti.data.datasets.listing import LeftOut
from smalti.data.datasets.remote.data_files import DataFiles
from smalti.data.decode import MAX_BYTES


class TableDataset(StoredDataset):
    """Images in the rows of several files."""

    def __init__(self, places: DataFiles, channels: int) -> None:
        self.places, self.channels = places, channels
        self.left_out = LeftOut()

    @abstractmethod
    def place(self, index: int) -> tuple[int, int]:
        """The file of an image, and its row there."""

    @abstractmethod
    def cell(self, index: int) -> Any:
        """The pyarrow scalar that holds an image."""

    def name(self, index: int) -> str:
        file, row = self.place(index)
        return f"{self.places.names[file]}:{row}"

    def key(self, index: int) -> str:
        return self.places.relative(self.name(index))

    def read(self, index: int) -> bytes:
        try:
            cell = self.cell(index)
        except DataError as error:
            raise DataError(f"cannot read {self.name(index)}", cause=error.cause or error.what) from error
        if not cell.is_valid:
            cause = "the cell is empty, or holds the path of a file without its bytes"
            raise DataError(f"cannot read {self.name(index)}", cause=cause)
        buffer = cell.as_buffer()
        if buffer.size > MAX_BYTES:
            cause = f"{buffer.size >> 20} MiB; at most {MAX_BYTES >> 20}"
            raise DataError(f"cannot read {self.name(index)}", cause=cause)
        return bytes(buffer.to_pybytes())

    def read_many(self, indices: Sequence[int]) -> list[bytes | DataError]:
        """The files of several images, in the order asked for; each row group is decoded once."""
        found: dict[int, bytes | DataError] = {}
        for index in sorted(set(indices)):
            try:
                found[index] = self.read(index)
            except DataError as error:
                found[index] = error
        return [found[index] for index in indices]

    def fingerprint(self) -> str:
        """A digest of the files' names and sizes and of all labels; the same wherever the same files lie."""
        files = [
            (self.places.relative(name), size) for name, size in zip(self.places.names, self.places.sizes, strict=True)
        ]
        digest = hashlib.sha256(repr((files, len(self), self.classes)).encode(errors="surrogateescape"))
        digest.update(b"" if self.labels is None else self.labels.astype("<i4").tobytes())
        return digest.hexdigest()


def without_bytes(name: str, column: str, rows: int) -> DataError:
    """The error for a table that has no image in it at all."""
    cause = f"column {column} has no bytes in {rows} rows; tables that hold only the paths of files cannot be read"
    fix = "write it anew with Dataset.save_to_disk or push_to_hub, which put the images in"
    return DataError(f"no images in {name}", cause=cause, fix=fix)
