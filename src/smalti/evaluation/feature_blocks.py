"""Features on their way to a file: blocks of consecutive images, a file each, in a folder that is removed later."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from smalti.core.errors import CheckpointError
from smalti.core.files import sha256, write_bytes
from smalti.core.stored import parse_json
from smalti.core.tensors import read_tensors
from smalti.data.datasets.dataset import ImageDataset
from smalti.evaluation.feature_files import Part, Row, text_of

BLOCK = 1024
"""Images of a block, which is lost when the process is killed."""


class Block(NamedTuple):
    """Rows that were computed.

    Attributes:
        positions: those of the readable images in the data set, (m,).
        features: float32, on any device until they are stored.
        bad: path and reason of the images that cannot be read.
    """

    positions: NDArray[np.int64]
    features: Float[Tensor, "m F"]
    bad: list[tuple[str, str]]

    @staticmethod
    def joined(parts: "Sequence[Block]") -> "Block":
        """Consecutive rows as one block, on the CPU."""
        positions, features, bad = zip(*parts, strict=True)
        return Block(np.concatenate(positions), torch.cat(features).cpu(), [item for some in bad for item in some])


class Blocks:
    """The blocks of a data set in a folder.

    Attributes:
        count: how many there are when all are computed.
    """

    def __init__(self, folder: Path, source: ImageDataset) -> None:
        self.folder, self.source = folder, source
        self.count = -(-len(source) // BLOCK)

    def positions(self, number: int) -> NDArray[np.int64]:
        """The images of a block, readable or not."""
        return np.arange(number * BLOCK, min((number + 1) * BLOCK, len(self.source)))

    def path(self, number: int) -> Path:
        """The file of a block."""
        return self.folder / f"{number:08d}.safetensors"

    def store(self, number: int, block: Block) -> None:
        """Write a block, whole or not at all."""
        bad = torch.frombuffer(bytearray(json.dumps(block.bad).encode()), dtype=torch.uint8)
        tensors = {
            "positions": torch.from_numpy(block.positions),
            "features": block.features,
            "bad": bad,
        }
        write_bytes(self.path(number), save(tensors | {"digest": _digest(number, tensors)}))

    def read(self, number: int) -> Block:
        """Read a block; its features are memory-mapped.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        try:
            found = read_tensors(self.path(number))
            if not torch.equal(found.pop("digest"), _digest(number, found)):
                raise ValueError("it differs from its digest")
            bad = [(str(path), str(reason)) for path, reason in parse_json(bytes(found["bad"].numpy()))]
            return Block(found["positions"].numpy(), found["features"], bad)
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = "remove it, and give the same command again"
            raise CheckpointError(f"{self.path(number)} is damaged", cause=str(error), fix=fix) from error

    def parts(self) -> Iterator[Part]:
        """All rows, in order."""
        for number in range(self.count):
            block = self.read(number)
            yield Part(list(map(self._row, block.positions.tolist())), block.features.numpy())

    def _row(self, position: int) -> Row:
        label, classes = self.source.label(position), self.source.classes
        name = classes[label] if 0 <= label < len(classes) else ""
        return Row(position, text_of(self.source.key(position)), text_of(name))


def _digest(number: int, tensors: dict[str, Tensor]) -> UInt8[Tensor, "32"]:
    """SHA-256 of the content of a block, and of its number."""
    parts = [str(number).encode()]
    for name, value in sorted(tensors.items()):
        parts += [f"{name} {value.dtype} {tuple(value.shape)}".encode(), value.reshape(-1).numpy().tobytes()]
    return torch.frombuffer(bytearray.fromhex(sha256(*parts)), dtype=torch.uint8)
