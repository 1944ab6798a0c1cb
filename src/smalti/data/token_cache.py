"""Cache of visual tokens in a folder: computed once, for later runs and other networks on the same views.

    key.json            what the tokens depend on; a run with another key is refused
    ids-00000.u16       epoch 0 of the views: a row for each image, uint16 little-endian, of N visual tokens + 1 and
                        of 4 numbers that are a digest of what the row is; 0: missing

The digest is the BLAKE2b of the row's N numbers, keyed with the digest of key.json, the epoch and the image, so that no
row is taken for that of another place; the lowest bit of its numbers is set. A new file is empty, and a row partly
written at a crash contains a 0, so there is nothing to repair. Several processes may fill a cache at once: they write
the same values. Files are read and written without a memory map, because a map kills the process if the disk is full or
the file is truncated. Links, pipes and devices are neither read nor written.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import nn

from smalti.core.compute import Compute, on_device
from smalti.core.config import require, to_json
from smalti.core.contracts import Batch, BatchWrapper, Tokenizer
from smalti.core.errors import DataError, OutputError
from smalti.core.files import make_folder, write_json
from smalti.core.folder_lock import exclusive_lock
from smalti.core.log import Log
from smalti.core.stored import open_ordinary, read_object
from smalti.data.datasets.data_files import system_errors_named
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.loader import Loader, SampledBatch
from smalti.data.tokens import CHUNK, encode
from smalti.data.transforms.views import TwoViews
from smalti.models.vit import VisionTransformer
from smalti.tokenizers.image_tokenizer import ImageTokenizer

VERSION = 2
"""To be raised by whoever changes the pixels of a view, or the files of a token cache."""

_SHOWN = 12
MAX_VOCAB = 65535
KEY, BAD_FILES = "key.json", "bad_files.jsonl"
_MAX_OPEN = 8
_DIGEST = 8
"""Bytes of the digest of a row."""
_NO_ZEROS = 0x0001_0001_0001_0001


@dataclass(frozen=True)
class TokenKey:
    """Everything that can change a visual token of a view, except epoch and image.

    The number of cycled views is not part of it: view v of an image is the same, however many there are.

    Attributes:
        tokenizer: digest of its weights and configuration.
        vocab_size: number of visual tokens in the vocabulary.
        num_patches: number of visual tokens per image.
        data: digest of the images.
        num_images: number of images.
        memory: crops are cut from squares in memory, or from whole pictures.
        channels, side: of the images; side is None where they are streamed.
        views: crop, sizes and colours.
        seed: what views are drawn from.
        device, dtype, mode: where, in which number format and how the tokenizer computes.
        chunk: number of images it is given at a time.
        torch, numpy, decoder: versions of what computes pixels and tokens; decoder is None where pixels are in memory.
        version: of the part computed by smalti.
    """

    tokenizer: str
    vocab_size: int
    num_patches: int
    data: str
    num_images: int
    memory: Literal["resident", "stream"]
    channels: int
    side: int | None
    views: TwoViews
    seed: int
    device: str
    dtype: str
    decoder: str | None
    mode: str = "eager"
    chunk: int = CHUNK
    torch: str = str(torch.__version__)
    numpy: str = np.__version__
    version: int = VERSION

    def differences(self, there: dict[str, Any]) -> list[str]:
        """Every field in which a key read from a file differs from this one, with both values."""
        here = dict(_flat(json.loads(json.dumps(to_json(self)))))
        found = dict(_flat(there))
        names = list(here) + [name for name in found if name not in here]
        return [
            f"{name}: there {_shown(found, name)}, here {_shown(here, name)}"
            for name in names
            if name not in here or name not in found or here[name] != found[name]
        ]


def token_key(
    source: ImageDataset, views: TwoViews, seed: int, tokenizer: ImageTokenizer, compute: Compute, chunk: int = CHUNK
) -> TokenKey:
    """The key of a run. All pixels are read of images in memory, all names of other images."""
    pixels = source.pixels
    height, width = views.size if views.token_size is None else views.token_size
    return TokenKey(
        tokenizer=network_digest(tokenizer),
        vocab_size=tokenizer.vocab_size,
        num_patches=(height // tokenizer.stride) * (width // tokenizer.stride),
        data=source.fingerprint() + (f" {source.window}" if source.window and pixels is None else ""),
        num_images=len(source),
        memory="stream" if pixels is None else "resident",
        channels=source.channels,
        side=None if pixels is None else pixels.shape[2],
        views=views,
        seed=seed,
        device=_device(compute.device),
        dtype=str(compute.dtype).removeprefix("torch."),
        chunk=chunk,
        decoder=f"Pillow {_version('pillow')}, simplejpeg {_version('simplejpeg')}" if pixels is None else None,
    )


def network_digest(network: ImageTokenizer | VisionTransformer) -> str:
    """SHA-256 over configuration and weights."""
    return digest_of(network, network.config)


def digest_of(network: nn.Module, config: Any) -> str:
    """SHA-256 over the weights of a network and the configuration that it was built from."""
    found = hashlib.sha256(json.dumps(to_json(config), sort_keys=True).encode())
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _device(device: torch.device) -> str:
    """The type of processor: other types may round differently."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of nested objects by their dotted names."""
    if not isinstance(value, dict):
        yield prefix.removesuffix("."), value
        return
    for name, item in value.items():
        yield from _flat(item, f"{prefix}{name}.")


def _shown(fields: dict[str, Any], name: str) -> str:
    """A value as shown in messages; only the beginning of a digest."""
    text = str(fields.get(name, "nothing"))
    return text if len(text) <= 5 * _SHOWN else f"{text[:_SHOWN]}..."


class TokenCache:
    """Visual tokens by epoch of the view and position of the image."""

    def __init__(self, folder: Path, key: TokenKey) -> None:
        """Open a cache, or create one where the folder is missing or empty.

        Raises:
            DataError: the cache has another key, or the folder is not a cache.
            OutputError: it cannot be created.
            UsageError: the vocabulary is too large.
        """
        require(
            key.vocab_size <= MAX_VOCAB, f"a token cache holds at most {MAX_VOCAB} visual tokens, not {key.vocab_size}"
        )
        _require_same_key(folder, key)
        self.folder, self.key = folder, key
        self.row_bytes = np.dtype("<u2").itemsize * key.num_patches + _DIGEST
        self._sealed = hashlib.sha256(json.dumps(to_json(key), sort_keys=True).encode()).digest()
        self._open: dict[tuple[int, int], int] = {}

    def lookup(
        self, view_epoch: Int[np.ndarray, "B"], index: Int[np.ndarray, "B"]
    ) -> tuple[Int[np.ndarray, "B N"], Bool[np.ndarray, "B"]]:
        """The ids of some views, and which of the rows are cached; the other rows are undefined.

        Raises:
            DataError: a file is damaged or cannot be read.
        """
        found = np.zeros((len(index), self.row_bytes), np.uint8)
        for run in _runs(view_epoch, index):
            rows = found[run].reshape(-1)
            data = self._read(int(view_epoch[run.start]), int(index[run.start]), len(rows))
            whole = len(data) // 2 * 2  # half a uint16 would be read as another number
            rows[:whole] = np.frombuffer(data, np.uint8, whole)
            if (found[run, :-_DIGEST].view("<u2") > self.key.vocab_size).any():
                cause = f"it holds visual tokens beyond the {self.key.vocab_size} that there are"
                raise _damaged(self.path(int(view_epoch[run.start])), cause)
        present = np.asarray(found.view("<u2").all(1))
        for row in np.flatnonzero(present).tolist():
            epoch, image, stored = int(view_epoch[row]), int(index[row]), found[row].tobytes()
            if stored[-_DIGEST:] != self._digest(epoch, image, stored[:-_DIGEST]):
                raise _damaged(self.path(epoch), f"the visual tokens of image {image} differ from their digest")
        return found[:, :-_DIGEST].view("<u2").astype(np.int64) - 1, present

    def store(self, view_epoch: Int[np.ndarray, "B"], index: Int[np.ndarray, "B"], ids: Int[np.ndarray, "B N"]) -> None:
        """Store the ids of some views. Rows stored before stay valid where a file cannot be written (`OutputError`)."""
        rows = [row.tobytes() for row in (ids + 1).astype("<u2")]
        of = zip(view_epoch.tolist(), index.tolist(), rows, strict=True)
        stored = [row + self._digest(epoch, image, row) for epoch, image, row in of]
        for run in _runs(view_epoch, index):
            self._write(int(view_epoch[run.start]), int(index[run.start]), b"".join(stored[run]))

    def missing(self, view_epoch: int, block: int = 8192) -> NDArray[np.int64]:
        """Positions of the images of an epoch whose ids are not cached."""
        positions = np.arange(self.key.num_images)
        parts = [positions[start : start + block] for start in range(0, len(positions), block)]
        return np.concatenate([part[~self.lookup(np.full_like(part, view_epoch), part)[1]] for part in parts])

    def path(self, view_epoch: int) -> Path:
        return self.folder / f"ids-{view_epoch:05d}.u16"

    def close(self) -> None:
        """Close the open files; they are opened again when needed."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _digest(self, epoch: int, index: int, row: bytes) -> bytes:
        """The digest of the row of an image, without zeros."""
        of = self._sealed + epoch.to_bytes(8, "little") + index.to_bytes(8, "little")
        found = hashlib.blake2b(row, digest_size=_DIGEST, key=of).digest()
        return (int.from_bytes(found, "little") | _NO_ZEROS).to_bytes(_DIGEST, "little")

    def _read(self, epoch: int, index: int, length: int) -> bytes:
        """Up to `length` bytes of the file, beginning at the row of an image."""
        with system_errors_named(self.path(epoch)), suppress(FileNotFoundError):
            return os.pread(self._file(epoch, os.O_RDONLY), length, index * self.row_bytes)
        return b""

    def _write(self, epoch: int, index: int, data: bytes) -> None:
        position = index * self.row_bytes
        try:
            while data:
                written = os.pwrite(self._file(epoch, os.O_RDWR | os.O_CREAT), data, position)
                data, position = data[written:], position + written
        except OSError as error:
            raise OutputError(f"cannot write {self.path(epoch)}", cause=error.strerror or str(error)) from error

    def _file(self, epoch: int, flags: int) -> int:
        """The descriptor of an epoch's file; the one open longest is closed to make room."""
        found = self._open.get((epoch, flags))
        if found is None:
            if len(self._open) == _MAX_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            found = open_ordinary(self.path(epoch), flags)
            size, most = os.fstat(found).st_size, self.key.num_images * self.row_bytes
            if size > most:
                os.close(found)
                raise _damaged(self.path(epoch), f"it has {size} bytes, and at most {most} are right")
            self._open[epoch, flags] = found
        return found


def _runs(epoch: NDArray[np.int64], index: NDArray[np.int64]) -> Iterator[slice]:
    """Slices of rows that are contiguous in one file."""
    apart = np.flatnonzero((np.diff(index) != 1) | (np.diff(epoch) != 0)) + 1
    ends = [0, *apart.tolist(), len(index)]
    return (slice(start, stop) for start, stop in pairwise(ends) if stop > start)


def _require_same_key(folder: Path, key: TokenKey) -> None:
    """Compare the key with the stored one, or write it if there is none."""
    path = folder / KEY
    if not os.path.lexists(path):
        make_folder(folder)
        with exclusive_lock(folder):
            if not os.path.lexists(path):
                _begin(folder, key)
    try:
        with system_errors_named(path):
            there = read_object(path)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if differences := key.differences(there):
        fix = "delete it, or give another folder"
        raise DataError(f"token cache {folder} does not fit this run", cause=", ".join(differences), fix=fix)


def _begin(folder: Path, key: TokenKey) -> None:
    others = sorted(
        entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != BAD_FILES
    )
    if others:
        raise DataError(
            f"{folder} is no token cache", cause=f"there is no {KEY}, but {others[0]}", fix="give an empty folder"
        )
    write_json(folder / KEY, to_json(key))


def _damaged(path: Path, cause: str) -> DataError:
    return DataError(f"{path} is damaged", cause=cause, fix="delete the cache, or give another folder")


@dataclass
class CachedTokens(BatchWrapper):
    """Batches with `ids`, equal bit for bit to those of `TokenizedBatches`. Missing rows are computed and stored.

    If the cache cannot be written, this is reported once and the run continues.
    """

    batches: Loader
    tokenizer: Tokenizer
    compute: Compute
    cache: TokenCache
    log: Log = field(default_factory=Log)
    _writable: bool = field(default=True, init=False)

    def __call__(self, step: int) -> Batch:
        return self.with_ids(self.batches(step), self.batches.order(step))

    def close(self) -> None:
        super().close()
        self.cache.close()

    def with_ids(self, batch: Batch, rows: SampledBatch) -> Batch:
        """The batch of the given images, on the device."""
        ids, present = self.cache.lookup(rows.view_epoch, rows.index)
        as_asked = batch.index.numpy() == rows.index  # not replaced for an unreadable one
        if missing := np.flatnonzero(~(present & as_asked)).tolist():
            view = on_device(batch.token_view[missing], self.compute.device)
            found = encode(view, self.tokenizer, self.compute, self.cache.key.chunk)
            ids[missing] = found.cpu().numpy()
            kept = [row for row in missing if as_asked[row]]
            self._store(rows.view_epoch[kept], rows.index[kept], ids[kept])
        return replace(batch.to(self.compute.device), ids=on_device(torch.from_numpy(ids), self.compute.device))

    def _store(
        self, view_epoch: Int[np.ndarray, "B"], index: Int[np.ndarray, "B"], ids: Int[np.ndarray, "B N"]
    ) -> None:
        if not self._writable:
            return
        try:
            self.cache.store(view_epoch, index, ids)
        except OutputError as error:
            self._writable = False
            self.log.say(f"{error}; visual tokens are not kept any more, the run goes on")
