"""Writing a pack: part by part, so that a killed run goes on after the last whole part."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from smalti import __version__
from smalti.core.errors import DataError
from smalti.core.files import make_folder, write_bytes, write_json
from smalti.core.folder_lock import only_writer
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.memory import InMemoryDataset
from smalti.data.packs.begun import clear, finished, require_own, whole_parts
from smalti.data.packs.format import ABOUT, BAD_FILES, VERSION, About, Header, Settings, digest_of
from smalti.data.packs.part_writer import PartWriter
from smalti.data.packs.record import make_record
from smalti.data.reading import each, even_sample

PART_BYTES = 256 << 20


class Packed(NamedTuple):
    """A finished pack, and how many of its parts were written now."""

    about: About
    written: int


def write_pack(
    source: ImageDataset | InMemoryDataset,
    folder: Path,
    settings: Settings,
    log: Log,
    max_bad_fraction: float = 0.01,
    part_bytes: int = PART_BYTES,
) -> Packed:
    """Write the images of a source into `folder`, or go on with a pack that was begun there under the same settings.

    Args:
        max_bad_fraction: share of unreadable images above which it stops.
        part_bytes: a part is closed when it has so many or more.

    Raises:
        UsageError: the folder holds something else, or a pack with other settings.
        DataError: too many images cannot be read.
        OutputError: the folder cannot be written, or another process is writing it.
    """
    make_folder(folder)
    require_own(folder)
    with only_writer(folder):
        headers = whole_parts(folder, settings, log)
        positions = even_sample(len(source), settings.limit)
        about = finished(folder, headers, len(positions))
        if about is not None:
            return Packed(about, 0)
        clear(folder, len(headers))
        kept, bad = len(headers), _BadFiles(folder / BAD_FILES, len(positions), max_bad_fraction, headers)
        _Packing(source, folder, settings, headers, part_bytes).go_on(positions, bad, log)
        bad.finish(log)
        return Packed(_close(folder, settings, source.classes, headers), len(headers) - kept)


@dataclass
class _Packing:
    """A pack being written; `headers` are those of its whole parts."""

    source: ImageDataset | InMemoryDataset
    folder: Path
    settings: Settings
    headers: list[Header]
    part_bytes: int

    @property
    def done(self) -> int:
        """How many positions the whole parts have dealt with."""
        return self.headers[-1].stop if self.headers else 0

    def begin(self) -> PartWriter:
        """The next part."""
        return PartWriter(self.folder, len(self.headers), self.done, self.settings)

    def go_on(self, positions: Sequence[int], bad: "_BadFiles", log: Log) -> None:
        """Write what is missing. A part is closed when the next image comes, so bad files at its end belong to it."""
        if self.done == len(positions):
            return
        form, part = self.settings.form, self.begin()
        missing = positions[self.done :]
        try:
            with each(lambda position: make_record(self.source, position, form), missing, log, "prepare") as records:
                for position, record in records:
                    if isinstance(record, DataError):
                        part.refuse(position, self.source.name(position), record.cause)
                        bad.add(*part.unreadable[-1])
                        continue
                    if part.size >= self.part_bytes:
                        self.headers.append(part.finish())
                        part = self.begin()
                    part.add(record)
            self.headers.append(part.finish())
        finally:
            part.discard()


class _BadFiles:
    """The images that cannot be read, over all parts."""

    def __init__(self, path: Path, total: int, max_fraction: float, headers: Sequence[Header]) -> None:
        self.path, self.total, self.most = path, total, max(1.0, max_fraction * total)
        self.found = [entry for header in headers for entry in header.unreadable]

    def add(self, position: int, path: str, reason: str) -> None:
        """Count one more; stop where there are too many.

        Raises:
            DataError: too many.
        """
        self.found.append((position, path, reason))
        if len(self.found) > self.most or len(self.found) == self.total:
            self._write()
            fix = "remove them, or raise --max-bad-fraction; smalti check names them all"
            raise DataError(self._summary(), cause=self.found[0][2], fix=fix)

    def finish(self, log: Log) -> None:
        """Say and list what was left out."""
        if self.found:
            self._write()
            log.say(f"left out: {self._summary()} ({self.found[0][2]})")

    def _summary(self) -> str:
        return f"{len(self.found)} of {self.total} images cannot be read, first {self.found[0][1]}"

    def _write(self) -> None:
        lines = (json.dumps({"path": path, "reason": reason}) for _, path, reason in self.found)
        write_bytes(self.path, ("\n".join(lines) + "\n").encode())


def _close(folder: Path, settings: Settings, classes: tuple[str, ...], headers: Sequence[Header]) -> About:
    """Write pack.json: from now on it is a pack."""
    parts = tuple(header.part for header in headers)
    counts = (sum(part.images for part in parts), sum(len(header.unreadable) for header in headers))
    about = About(VERSION, __version__, digest_of(classes, parts), settings, *counts, classes, parts)
    write_json(folder / ABOUT, asdict(about))
    return about
