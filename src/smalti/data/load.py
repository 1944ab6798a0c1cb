"""DATA as given on the command line, to images in memory."""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from smalti.core.config import require, setting
from smalti.core.errors import DataError
from smalti.core.files import write_bytes
from smalti.core.log import Log
from smalti.core.rng import Stream, fold
from smalti.data.listing import FollowLinks
from smalti.data.open import EMBEDDED, open_stored
from smalti.data.sources import Resident, embedded
from smalti.data.stored import Stored

T = TypeVar("T")


class Images(NamedTuple):
    """What a run learns from and what it is judged on; no image is in both."""

    train: Resident
    held_out: Resident


@dataclass(frozen=True)
class Data:
    """Which images, and how they are held in memory: decoded once, the centre square, `side` pixels."""

    path: str = setting("", "a folder of images, a list (.txt, .csv), tar shards (a-{000..009}.tar), or 'embedded'")
    channels: int = setting(3, "1 grey, 3 RGB")
    side: int = setting(64, "pixels")
    held_out: float = setting(0.05, "share of the images never trained on; the embedded ones have their own")
    limit: int | None = setting(None, "images at most, an even sample; none: all")
    max_bad_fraction: float = setting(0.01, "share of unreadable images above which a run stops")
    follow_links: FollowLinks = setting("inside", "links of a folder: those that stay inside it, or all")

    def __post_init__(self) -> None:
        require(self.channels in (1, 3), f"{self.channels} channels", "use 1 or 3")
        require(self.side >= 4, f"images of {self.side} pixels", "use at least 4")
        require(0 < self.held_out < 1, f"a held-out share of {self.held_out}", "choose one between 0 and 1")
        require(0 <= self.max_bad_fraction <= 1, f"max_bad_fraction {self.max_bad_fraction}", "choose one in [0, 1]")
        require(self.limit is None or self.limit >= 2, f"a limit of {self.limit} images", "use at least 2")

    def load(self, log: Log, bad_files: Path | None = None) -> Images:
        """Read everything.

        Args:
            log: for progress and a line about unreadable files.
            bad_files: where to list them, a JSON object a line.

        Raises:
            DataError: nothing there, too few images, or too many that cannot be read.
        """
        if self.path == EMBEDDED:
            return Images(self._fitted(embedded("train")), self._fitted(embedded("test")))
        source = open_stored(self.path, self.channels, log, self.follow_links)
        for note in source.notes:
            log.say(f"note: {note}")
        if source.left_out.counts:
            log.say(f"left out: {source.left_out}")
        return split_held_out(read_source(source, self, log, bad_files), self.held_out)

    def _fitted(self, images: Resident) -> Resident:
        """The embedded images in the asked-for size and number."""
        chosen = images if self.limit is None else images.select(np.arange(min(self.limit, len(images))))
        pixels = chosen.images
        if pixels.shape[-1] != self.side:
            squares = [_square(image[0].numpy()[..., None], self.side) for image in pixels]
            pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
        return Resident(pixels, chosen.labels, chosen.classes).with_channels(self.channels)


def read_source(source: Stored, data: Data, log: Log, bad_files: Path | None = None) -> Resident:
    """Decode a source into memory with one thread a core; unreadable images are listed and left out."""
    positions = even_sample(len(source), data.limit)
    failed: dict[str, str] = {}
    pixels = np.empty((len(positions), data.channels, data.side, data.side), np.uint8)
    labels: list[int] = []
    for position, result in each(lambda position: _read(source, position, data.side), positions, log, "read images"):
        if isinstance(result, DataError):
            failed[source.name(position)] = result.cause
        else:
            pixels[len(labels)] = result[0].transpose(2, 0, 1)
            labels.append(result[1])
    _report_bad(failed, len(positions), data, log, bad_files)
    return Resident(torch.from_numpy(pixels[: len(labels)]), torch.tensor(labels), source.classes)


def in_order(threads: Executor, function: Callable[[int], T], items: Sequence[int], ahead: int = 256) -> Iterator[T]:
    """`map` on threads, at most `ahead` items ahead of whoever takes the results: a million do not fill the memory."""
    for start in range(0, len(items), ahead):
        yield from threads.map(function, items[start : start + ahead])


def each(
    look: Callable[[int], T], positions: Sequence[int], log: Log, title: str
) -> Iterator[tuple[int, T | DataError]]:
    """Look at images on one thread a core, with progress: each position with what was found there, or what is wrong."""
    unreadable = 0
    with (
        warnings.catch_warnings(),
        log.progress(title, len(positions)) as bar,
        ThreadPoolExecutor(os.cpu_count()) as threads,
    ):
        warnings.simplefilter("ignore")
        results = in_order(threads, lambda position: _attempt(look, position), positions)
        for number, (position, result) in enumerate(zip(positions, results, strict=True), start=1):
            yield position, result
            unreadable += isinstance(result, DataError)
            bar.update(number, f"{unreadable} unreadable" if unreadable else "")


def _attempt(look: Callable[[int], T], position: int) -> T | DataError:
    try:
        return look(position)
    except DataError as error:
        return error


def _read(source: Stored, position: int, side: int) -> tuple[NDArray[np.uint8], int]:
    sample = source.shrunk(position, side)
    return _square(sample.image, side), sample.label


def split_held_out(images: Resident, share: float) -> Images:
    """Put a share of the images aside, chosen by a hash of their position."""
    if len(images) < 2:
        raise DataError(f"only {len(images)} readable image", cause="training and measuring need at least 2")
    order = np.argsort(fold(0, np.arange(len(images)), Stream.SPLIT), kind="stable")
    aside = min(max(1, round(share * len(images))), len(images) - 1)
    return Images(images.select(np.sort(order[aside:])), images.select(np.sort(order[:aside])))


def affordable(data: Data, seconds: float, trial: int = 16) -> int:
    """How many images can be decoded in about `seconds`, from a trial on a few of them; at least 64."""
    source = open_stored(data.path, data.channels, follow=data.follow_links)
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        positions = even_sample(len(source), trial)
        list(threads.map(lambda position: _attempt(lambda p: _read(source, p, data.side), position), positions))
    an_image = (time.perf_counter() - began) / min(trial, len(source))
    return max(64, int(seconds / an_image))


def _report_bad(failed: dict[str, str], total: int, data: Data, log: Log, bad_files: Path | None) -> None:
    if not failed:
        return
    listed = sorted(failed.items())
    if bad_files is not None:
        lines = (json.dumps({"path": path, "reason": reason}) for path, reason in listed)
        write_bytes(bad_files, ("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    path, reason = listed[0]
    summary = f"{len(failed)} of {total} images cannot be read, first {path}"
    if len(failed) == total or len(failed) > max(1, data.max_bad_fraction * total):
        raise DataError(summary, cause=reason, fix="remove them, or raise --data.max-bad-fraction")
    log.say(f"left out: {summary} ({reason})")


def even_sample(length: int, limit: int | None) -> list[int]:
    """At most `limit` positions of `length`, evenly spread."""
    return list(range(length)) if limit is None or length <= limit else [i * length // limit for i in range(limit)]


def _square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The centre square, scaled to `side`."""
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    box = (left, top, left + short, top + short)
    scaled = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box=box))
    return scaled.reshape(side, side, -1)
