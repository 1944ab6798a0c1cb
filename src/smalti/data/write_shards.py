"""Writes a prepared dataset shard by shard, so that a killed run resumes after the last complete shard.

Ranks share the reading and encoding; rank 0 writes what they send, in order, so the bytes are those of one process.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from smalti import __version__
from smalti.core.errors import DataError, UsageError
from smalti.core.files import make_folder, write_json
from smalti.core.folder_lock import writer_lock
from smalti.core.log import Log
from smalti.core.machine import usable_processors
from smalti.core.ranks import rank, world_size
from smalti.data.bad_files import LeftOutFiles
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.prepared import (
    ABOUT,
    BAD_FILES,
    VERSION,
    About,
    DamagedShardError,
    Header,
    Settings,
    check_digest,
    digest_of,
    index_path,
    read_about,
    read_index,
    refuse_pack,
    tar_path,
)
from smalti.data.reading import even_sample, map_images, try_read
from smalti.data.shard_writer import Record, ShardWriter, make_record, writing
from smalti.distributed.collectives import all_gather_json, from_rank0, gather_bytes

SHARD_BYTES = 256 << 20
_CHUNK = 128
"""Images that a rank encodes before it sends them to rank 0."""
_OWN = re.compile(r"shard-\d{5,}\.(tar|index)|prepared\.json|bad_files\.jsonl")
_UNFINISHED = re.compile(rf"\.({_OWN.pattern})(\.[0-9a-f]{{32}})?")


class Written(NamedTuple):
    """A finished dataset, and how many of its shards this run wrote."""

    about: About
    written: int


def write_shards(
    source: ImageDataset,
    folder: Path,
    settings: Settings,
    log: Log,
    max_bad_fraction: float = 0.01,
    shard_bytes: int = SHARD_BYTES,
) -> Written:
    """Write the images of a source into `folder`, or resume an earlier run with the same settings.

    Only rank 0 calls this; the others call `encode_for_rank0` at the same time.

    Args:
        max_bad_fraction: share of unreadable images above which writing stops.
        shard_bytes: a shard is closed when it has at least this many bytes.

    Raises:
        UsageError: the folder contains other files, or was prepared with other settings.
        DataError: too many images cannot be read.
        OutputError: the folder cannot be written, or another process is writing it.
    """
    make_folder(folder)
    _require_own(folder)
    with writer_lock(folder):
        headers = _whole_shards(folder, settings, log)
        positions = even_sample(len(source), settings.limit)
        about = _finished(folder, headers, len(positions))
        from_rank0(lambda: headers[-1].stop if headers else 0)
        if about is not None:
            return Written(about, 0)
        _clear(folder, len(headers))
        kept, found = len(headers), [entry[1:] for header in headers for entry in header.unreadable]
        bad = LeftOutFiles(len(positions), folder / BAD_FILES, max_bad_fraction, "--max-bad-fraction", found)
        _Writing(source, folder, settings, headers, shard_bytes).go_on(positions, bad, log)
        bad.finish(log)
        return Written(_close(folder, settings, source.classes, headers), len(headers) - kept)


def encode_for_rank0(source: ImageDataset, settings: Settings, log: Log) -> None:
    """What the other ranks do while rank 0 is in `write_shards`: read and encode their share of the missing images."""
    done = from_rank0(int)
    with _records(source, even_sample(len(source), settings.limit)[done:], settings, log) as records:
        for _ in records:
            raise AssertionError("rank 0 alone writes")


@dataclass
class _Writing:
    """A dataset being written; `headers` are those of its complete shards."""

    source: ImageDataset
    folder: Path
    settings: Settings
    headers: list[Header]
    shard_bytes: int

    @property
    def done(self) -> int:
        """Number of positions covered by the complete shards."""
        return self.headers[-1].stop if self.headers else 0

    def begin(self) -> ShardWriter:
        return ShardWriter(self.folder, len(self.headers), self.done, self.settings)

    def go_on(self, positions: Sequence[int], bad: LeftOutFiles, log: Log) -> None:
        """Write the missing positions. A shard is closed at the next image, so bad files at its end belong to it."""
        if self.done == len(positions):
            return
        shard = self.begin()
        try:
            with _records(self.source, positions[self.done :], self.settings, log) as records:
                for position, record in records:
                    if isinstance(record, DataError):
                        shard.refuse(position, self.source.name(position), record.cause)
                        bad.add(*shard.unreadable[-1][1:])
                        continue
                    if shard.size >= self.shard_bytes:
                        self.headers.append(shard.finish())
                        shard = self.begin()
                    shard.add(position, record)
            self.headers.append(shard.finish())
        finally:
            shard.discard()


@contextmanager
def _records(
    source: ImageDataset, positions: Sequence[int], settings: Settings, log: Log
) -> Iterator[Iterable[tuple[int, Record | DataError]]]:
    """The encoded images at these positions, in order, or why one cannot be read; on rank 0, from all ranks."""

    def encode(position: int) -> Record:
        return make_record(source, position, settings)

    if world_size() == 1:
        with map_images(encode, positions, log, "prepare") as records:
            yield records
        return

    def rounds() -> Iterator[tuple[int, Record | DataError]]:
        for start in range(0, len(positions), _CHUNK * world_size()):
            all_ranks = positions[start : start + _CHUNK * world_size()]
            own = all_ranks[rank() * _CHUNK : (rank() + 1) * _CHUNK]
            yield from zip(all_ranks, _gathered(list(threads.map(lambda at: try_read(encode, at), own))), strict=False)
            bar.update(start + len(all_ranks))

    with (
        warnings.catch_warnings(),
        log.progress("prepare", len(positions)) as bar,
        ThreadPoolExecutor(usable_processors()) as threads,
    ):
        warnings.simplefilter("ignore")
        yield rounds()


def _gathered(own: Sequence[Record | DataError]) -> list[Record | DataError]:
    """The records of all ranks, on rank 0; nothing on the others."""
    about = [
        {"what": found.what, "cause": found.cause}
        if isinstance(found, DataError)
        else {"label": found.label, "key": found.key, "size": len(found.data)}
        for found in own
    ]
    described = all_gather_json(about)
    found: list[Record | DataError] = []
    data = gather_bytes(b"".join(record.data for record in own if isinstance(record, Record)))
    for entries, stored in zip(described, data, strict=False):
        start = 0
        for entry in entries:
            if "what" in entry:
                found.append(DataError(entry["what"], cause=entry["cause"]))
                continue
            stop = start + entry["size"]
            found.append(Record(stored[start:stop], entry["label"], entry["key"]))
            start = stop
    return found


def _require_own(folder: Path) -> None:
    """Refuse to write into a folder with other files, such as photographs, or of an earlier version."""
    refuse_pack(folder)
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith(".") and not _OWN.fullmatch(entry.name):
            cause = f"{entry.name} is not what smalti prepare writes"
            raise UsageError(f"{folder} is not empty", cause=cause, fix="choose another --out")


def _whole_shards(folder: Path, settings: Settings, log: Log) -> list[Header]:
    """The existing shards, up to the first that is not as written; each is read and verified in full.

    Raises:
        UsageError: they were made under other settings.
        DataError: one cannot be read, or is of another version: this is no reason to delete it.
    """
    about = _sound_about(folder)
    if about is not None:
        about.settings.require(settings, folder)
    headers, damage = _headers(folder)
    for header in headers:
        header.settings.require(settings, folder)
    whole: list[Header] = []
    with log.progress("verify", len(headers)) as bar:
        for number, header in enumerate(headers):
            try:
                check_digest(tar_path(folder, number), header.shard)
                if header.start != (whole[-1].stop if whole else 0):
                    raise DamagedShardError(index_path(folder, number), "it does not follow the shard before")
            except DamagedShardError as error:
                damage = error
                break
            whole.append(header)
            bar.update(len(whole))
    if whole:
        images = sum(header.shard.images for header in whole)
        log.say(f"{folder}: {images} images are there already, shards 0 to {len(whole) - 1}")
    if damage is not None:
        log.say(f"{damage.what}; {damage.cause}; it is written again, with all that follows")
    return whole


def _headers(folder: Path) -> tuple[list[Header], DamagedShardError | None]:
    """The headers of the existing indices, up to the first damaged one: all are read before any shard is verified."""
    headers: list[Header] = []
    while (path := index_path(folder, len(headers))).exists():
        try:
            headers.append(read_index(path)[0])
        except DamagedShardError as error:
            return headers, error
    return headers, None


def _finished(folder: Path, headers: Sequence[Header], total: int) -> About | None:
    """The content of prepared.json, if it exists and matches shards that cover `total` images."""
    about = _sound_about(folder)
    if about is None or not headers or headers[-1].stop != total:
        return None
    return about if about.shards == tuple(header.shard for header in headers) else None


def _sound_about(folder: Path) -> About | None:
    """The content of prepared.json, if it exists and is valid."""
    if not (folder / ABOUT).exists():
        return None
    try:
        return read_about(folder)
    except DamagedShardError:
        return None


def _clear(folder: Path, kept: int) -> None:
    """Remove prepared.json first, then the shards after the first `kept` and the leftovers of a killed run."""
    keep = {path(folder, number) for number in range(kept) for path in (tar_path, index_path)}
    with writing(folder):
        (folder / ABOUT).unlink(missing_ok=True)
        for entry in folder.iterdir():
            if entry not in keep and (_OWN.fullmatch(entry.name) or _UNFINISHED.fullmatch(entry.name)):
                entry.unlink()


def _close(folder: Path, settings: Settings, classes: tuple[str, ...], headers: Sequence[Header]) -> About:
    """Write prepared.json, which marks the dataset as complete."""
    shards = tuple(header.shard for header in headers)
    counts = (sum(shard.images for shard in shards), sum(len(header.unreadable) for header in headers))
    about = About(VERSION, __version__, digest_of(classes, shards), settings, *counts, classes, shards)
    write_json(folder / ABOUT, asdict(about))
    return about
