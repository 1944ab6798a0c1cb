"""DATA as given on the command line, to images in memory."""

import json
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from smalti.core.config import require, setting
from smalti.core.errors import DataError
from smalti.core.files import write_bytes
from smalti.core.log import Log
from smalti.core.rng import Stream, fold
from smalti.data.sources import Folder, Resident, embedded

EMBEDDED = "embedded"


class Images(NamedTuple):
    """What a run learns from and what it is judged on; no image is in both."""

    train: Resident
    held_out: Resident


@dataclass(frozen=True)
class Data:
    """Which images, and how they are held in memory: decoded once, the centre square, `side` pixels."""

    path: str = setting("", "a folder of images, flat or with class folders, or 'embedded'")
    channels: int = setting(3, "1 grey, 3 RGB")
    side: int = setting(64, "pixels")
    held_out: float = setting(0.05, "share of the images (of a folder) never trained on")
    limit: int | None = setting(None, "images at most, an even sample; none: all")
    max_bad_fraction: float = setting(0.01, "share of unreadable images above which a run stops")

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
        source = open_folder(self.path, self.channels)
        everything = read_folder(source, self, log, bad_files)
        return split_held_out(everything, self.held_out)

    def _fitted(self, images: Resident) -> Resident:
        """The embedded images in the asked-for size and number."""
        chosen = images if self.limit is None else images.select(np.arange(min(self.limit, len(images))))
        pixels = chosen.images
        if pixels.shape[-1] != self.side:
            squares = [_square(image[0].numpy()[..., None], self.side) for image in pixels]
            pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
        return Resident(pixels.expand(-1, self.channels, -1, -1), chosen.labels, chosen.classes)


def open_folder(path: str, channels: int) -> Folder:
    """The folder that DATA names, or an error that says what is wrong with it."""
    if not path:
        raise DataError("no images given", fix="use --data FOLDER, or --data embedded")
    root = Path(path).expanduser()
    try:
        if not root.exists():
            raise DataError(f"no folder {root}", cause="it does not exist", fix="check --data")
        if not root.is_dir():
            raise DataError(f"{root} is a file", cause="DATA is a folder of images", fix="give the folder it lies in")
        return Folder(root, channels)
    except OSError as error:
        raise DataError(f"cannot list {error.filename or root}", cause=error.strerror or str(error)) from error


def read_folder(source: Folder, data: Data, log: Log, bad_files: Path | None = None) -> Resident:
    """Decode a folder into memory with one thread a core; unreadable files are listed and left out."""
    positions = _even_sample(len(source), data.limit)
    failed: dict[str, str] = {}

    read_ones = []
    with (
        warnings.catch_warnings(),
        log.progress("read images", len(positions)) as bar,
        ThreadPoolExecutor(os.cpu_count()) as threads,
    ):
        warnings.simplefilter("ignore")
        results = threads.map(lambda position: _try(source, position, data.side), positions)
        for number, (position, result) in enumerate(zip(positions, results, strict=True), start=1):
            if isinstance(result, DataError):
                failed[str(source.paths[position])] = result.cause
            else:
                read_ones.append(result)
            bar.update(number, f"{len(failed)} unreadable" if failed else "")
    _report_bad(failed, len(positions), data, log, bad_files)
    pixels = np.stack([image for image, _ in read_ones])
    labels = torch.tensor([label for _, label in read_ones])
    return Resident(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, source.classes)


def _try(source: Folder, position: int, side: int) -> tuple[NDArray[np.uint8], int] | DataError:
    try:
        sample = source.shrunk(position, side)
    except DataError as error:
        return error
    return _square(sample.image, side), sample.label


def split_held_out(images: Resident, share: float) -> Images:
    """Put a share of the images aside, chosen by a hash of their position."""
    if len(images) < 2:
        raise DataError(f"only {len(images)} readable image", cause="training and measuring need at least 2")
    order = np.argsort(fold(0, np.arange(len(images)), Stream.SPLIT), kind="stable")
    aside = min(max(1, round(share * len(images))), len(images) - 1)
    return Images(images.select(np.sort(order[aside:])), images.select(np.sort(order[:aside])))


def affordable(data: Data, seconds: float, trial: int = 16) -> int:
    """How many images of a folder can be decoded in about `seconds`, from a trial on a few of them; at least 64."""
    source = open_folder(data.path, data.channels)
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(lambda position: _try(source, position, data.side), _even_sample(len(source), trial)))
    each = (time.perf_counter() - began) / min(trial, len(source))
    return max(64, int(seconds / each))


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


def _even_sample(length: int, limit: int | None) -> list[int]:
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
