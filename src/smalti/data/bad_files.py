"""Unreadable images: each is reported once, on the console and in bad_files.jsonl; too many of them are an error.

A dataset that is read once, into memory or by `smalti prepare`, leaves them out; a streamed dataset shows other images
in their place.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from smalti.core.errors import DataError
from smalti.core.files import FETCH, POINTER, append, write_bytes
from smalti.core.log import Log
from smalti.core.ranks import is_rank0, world_size
from smalti.core.stored import read_lines
from smalti.data.formats import channels_remedy
from smalti.data.workers.jobs import Bad
from smalti.distributed.collectives import all_gather_json

OnBadImage: TypeAlias = Literal["replace", "error"]
"""Show another image instead and go on, or stop at the first."""

FLAG = "--data.max-bad-fraction"
_SHOWN = 5
_EARLY = 50
"""After so many images, a run of which more than half cannot be read is stopped, however large the data set."""


def allowing(flag: str, share: float) -> str:
    """What to do about too many unreadable images, where `flag` allows a share of them."""
    return f"remove them (smalti check names them all), or raise {flag} (now {share:g} of the images)"


class LeftOutFiles:
    """Images that cannot be read in one pass over `total` of them, by path and reason.

    Args:
        path: the file that lists them.
        flag: the flag of `max_fraction`, for the error for too many.
        found: those found by an earlier part of the same pass.
    """

    def __init__(
        self, total: int, path: Path | None, max_fraction: float, flag: str, found: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.total, self.path, self.fix = total, path, allowing(flag, max_fraction)
        self.most, self.found = max(1.0, max_fraction * total), list(found)

    def add(self, path: str, reason: str) -> None:
        """Record one more; a `DataError` if there are now too many."""
        self.found.append((path, reason))
        self._require_few()

    def finish(self, log: Log) -> None:
        """Write the list of unreadable images, and report it; a `DataError` if there are too many."""
        if self.found:
            self._require_few()
            self.write()
            listed = f"; listed in {self.path}" if self.path is not None else ""
            log.say(f"left out: {self._summary()} ({self.found[0][1]}){listed}")

    def _require_few(self) -> None:
        if len(self.found) > self.most or len(self.found) == self.total:
            self.write()
            cause = self.found[0][1]
            raise DataError(self._summary(), cause=cause, fix=_remedy(cause) or self.fix)

    def _summary(self) -> str:
        return f"{len(self.found)} of {self.total} images cannot be read, first {self.found[0][0]}"

    def write(self) -> None:
        if self.path is not None and is_rank0():
            lines = (json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in self.found)
            write_bytes(self.path, "".join(lines).encode())


def _remedy(cause: str) -> str:
    """What to do where images are not damaged but not there, or not what was asked for; else nothing."""
    return FETCH if POINTER in cause else channels_remedy(cause)


class BadFiles:
    """Counts unreadable images over a run, including every time it is resumed."""

    def __init__(
        self,
        total: int,
        name: Callable[[int], str],
        log: Log,
        path: Path | None = None,
        max_fraction: float = 0.01,
        on_bad_image: OnBadImage = "replace",
    ) -> None:
        self.total, self.name, self.log, self.path = total, name, log, path
        self.most, self.on_bad_image = max(1, int(max_fraction * total)), on_bad_image
        self.fix = allowing(FLAG, max_fraction)
        self.reasons: dict[int, str] = {}
        self.quarantined: set[int] = set()
        self.seen = 0
        for item in _earlier(path):
            self._keep(item)

    def add(self, bad: Sequence[Bad], seen: int) -> None:
        """Record what was unreadable while `seen` images were shown, on all ranks; a `DataError` if it is too much."""
        if world_size() > 1:
            bad = [Bad(*item) for items in all_gather_json(list(bad)) for item in items]
        self.seen += seen * world_size()
        for item in bad:
            if item.position not in self.reasons or (item.quarantined and item.position not in self.quarantined):
                self._note(item)
        count = len(self.reasons)
        if bad and (count > self.most or count > max(_EARLY, self.seen / 2)):
            raise self._too_many()

    def _keep(self, item: Bad) -> None:
        self.reasons[item.position] = item.reason
        if item.quarantined:
            self.quarantined.add(item.position)

    def _note(self, item: Bad) -> None:
        self._keep(item)
        name = self.name(item.position)
        if self.on_bad_image == "error":
            raise DataError(
                f"cannot read {name}", cause=item.reason, fix="remove it, or use --data.on-bad-image replace"
            )
        self.log.say(f"bad image, another one is shown instead: {name} ({item.reason})")
        if self.path is not None and is_rank0():
            line = {"path": name, "reason": item.reason, "index": item.position, "quarantined": item.quarantined}
            append(self.path, (json.dumps(line) + "\n").encode())

    def _too_many(self) -> DataError:
        first = [f"{self.name(position)}: {reason}" for position, reason in list(self.reasons.items())[:_SHOWN]]
        return DataError(
            f"{len(self.reasons)} of {self.total} images cannot be read, {self.seen} were shown",
            cause=", ".join(first),
            fix=_remedy(first[0]) or self.fix,
        )


def _earlier(path: Path | None) -> list[Bad]:
    """Unreadable images found by an earlier part of this run; what is no line of ours is ignored."""
    if path is None or not os.path.lexists(path):
        return []
    try:
        lines = read_lines(path)
    except (OSError, ValueError) as error:
        cause, fix = getattr(error, "strerror", None) or str(error), "remove it: what cannot be read is found again"
        raise DataError(f"{path} is damaged", cause=cause, fix=fix) from error
    found = (Bad(line.get("index", ""), line.get("reason", ""), line.get("quarantined", "")) for line in lines)
    return [bad for bad in found if tuple(map(type, bad)) == (int, str, bool)]
