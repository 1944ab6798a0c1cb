"""Reading files of `torch.save`, in both formats, without running code in them.

new (torch >= 1.6)  a zip archive: NAME/data.pkl is the pickle, NAME/data/KEY the numbers of a storage, not compressed
old                 five pickles (magic number, version, machine, object, keys), then length and numbers of each storage

Sizes are checked against the length of the file before memory is allocated.
"""

import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO, FileIO
from pathlib import Path

import torch
from torch import Tensor

from smalti.core.tensors import no_weights
from smalti.weights.pickled import Expected, Name, Value, read_pickle

MAX_PICKLE_BYTES = 2**18  # that of the public tokenizer has 30 000
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,  # indices of relative positions
    "torch.IntStorage": torch.int32,
    "torch.ByteStorage": torch.uint8,  # the state of a random generator, beside weights
    "torch.BoolStorage": torch.bool,
}
_FUNCTIONS = frozenset({"collections.OrderedDict", "builtins.set", "torch.device", TENSOR, PARAMETER})


class SparingFile(FileIO):
    """A file that is read in small chunks, so that a false length in it cannot allocate much memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(MAX_PICKLE_BYTES if size is None or size < 0 else min(size, MAX_PICKLE_BYTES)) or b""

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset < 0 and whence == 0:
            raise ValueError("it is damaged")
        return super().seek(offset, whence)

    def exactly(self, size: int) -> bytearray:
        """The next `size` bytes; ValueError where the file has fewer."""
        if not 0 <= size <= self.size - self.tell():
            raise ValueError("it is cut off")
        data = bytearray(size)
        if self.readinto(data) != size:
            raise ValueError("it is cut off")
        return data


@dataclass(frozen=True, slots=True)
class Storage:
    """The flat array of numbers of which tensors are views."""

    dtype: torch.dtype
    key: str
    num_values: int

    @property
    def num_bytes(self) -> int:
        return self.num_values * self.dtype.itemsize


@dataclass
class Storages:
    """The storages that a pickle refers to, and a function that reads one by its key."""

    known: dict[str, Storage] = field(default_factory=dict)
    read: Callable[[str], bytearray] = field(default=lambda key: bytearray())

    def persistent(self, identity: Value) -> Value:
        """The object of a persistent id: a storage, or in old files the source code of a class, which is not used."""
        match identity:
            case ("module", Name() as kind, _, _):
                return kind
            case ("storage", Name(dtype), str(key), str(), int(num_values), *rest) if rest in ([], [None]):
                storage = Storage(_DTYPES[dtype], key, num_values)
                if num_values < 1 or self.known.setdefault(key, storage) != storage:
                    raise ValueError("it describes a storage in two ways, or an empty one")
                return storage
        raise ValueError("it refers to something outside that is no storage")

    def values(self, storage: Storage) -> Tensor:
        """The numbers of a storage, flat."""
        data = self.read(storage.key)
        if len(data) != storage.num_bytes:
            raise ValueError(f"storage {storage.key[:20]} has {len(data)} bytes, expected {storage.num_bytes}")
        return torch.frombuffer(data, dtype=storage.dtype)


def read_file(
    file: SparingFile, name: str, classes: frozenset[str], inert: tuple[str, ...] = ()
) -> tuple[Value, Storages]:
    """The object in a file, and the storages it refers to.

    Args:
        file: the file, at its beginning; it must stay open while storages are read.
        classes: names of the classes of which it may contain instances.

    Raises:
        CheckpointError: it refers to anything else.
        ValueError, KeyError, EOFError, NotImplementedError, struct.error, zipfile.BadZipFile: it is damaged.
    """
    begin = file.read(256).lstrip()
    file.seek(0)
    if what := no_weights(begin):
        raise ValueError(what)
    storages = Storages()
    expected = Expected(classes, _FUNCTIONS, frozenset(_DTYPES), storages.persistent, inert)
    read = _read_zip if begin.startswith(b"PK") else _read_old
    return read(file, name, expected, storages), storages


def _read_zip(file: SparingFile, name: str, expected: Expected, storages: Storages) -> Value:
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    plain = all(e.compress_type == zipfile.ZIP_STORED and not e.flag_bits & 1 for e in archive.infolist())
    if not plain or sum(e.file_size for e in archive.infolist()) > file.size or len(entries) < len(archive.infolist()):
        raise ValueError("its zip archive is not one of torch.save")
    pickles = [entry for entry in entries if entry.endswith("/data.pkl")]
    if len(pickles) != 1 or entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise ValueError("its zip archive has no data.pkl, or one that is too long")
    folder = pickles[0].removesuffix("data.pkl")
    order = entries.get(folder + "byteorder")
    if order is not None and archive.read(order) != b"little":
        raise ValueError("its numbers are big-endian")
    storages.read = lambda key: bytearray(archive.read(entries[f"{folder}data/{key}"]))
    return read_pickle(BytesIO(archive.read(pickles[0])), name, expected)


def _read_old(file: SparingFile, name: str, expected: Expected, storages: Storages) -> Value:
    stream = BytesIO(file.read())
    if read_pickle(stream, name, expected) != _MAGIC:
        raise ValueError("torch.save did not write it")
    _, machine, root, keys = (read_pickle(stream, name, expected) for _ in range(4))
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or len(set(keys)) < len(keys):
        raise ValueError("its list of storages is damaged")
    places: dict[str, int] = {}
    file.seek(stream.tell())
    for key in keys:
        if struct.unpack("<q", file.exactly(8))[0] != storages.known[key].num_values:
            raise ValueError(f"storage {key[:20]} has another length than its pickle says")
        places[key] = file.tell()
        file.seek(storages.known[key].num_bytes, 1)

    def read(key: str) -> bytearray:
        file.seek(places[key])
        return file.exactly(storages.known[key].num_bytes)

    storages.read = read
    return root
