"""Loads DATA as given on the command line, as in-memory or streamed datasets; also separate test sets."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from smalti.core.addresses import shown
from smalti.core.config import require, setting
from smalti.core.contracts import Sample
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.core.machine import usable_memory, usable_processors
from smalti.core.ranks import local_world_size
from smalti.core.rng import permutation
from smalti.data.bad_files import FLAG, BadFiles, LeftOutFiles, OnBadImage
from smalti.data.datasets.dataset import ImageDataset, InMemoryDataset, embedded
from smalti.data.datasets.folder import FollowLinks, but_a_twin
from smalti.data.datasets.layout import read_layout
from smalti.data.datasets.open import EMBEDDED, Part, ReadOptions, open_source, open_with_notes, read_as
from smalti.data.datasets.prepared import is_prepared, prepared_window
from smalti.data.formats import channels_remedy, other_channels
from smalti.data.groups import GROUP, numbered, require_group, together
from smalti.data.reading import even_sample, map_images, measured_window, read_square, square, try_read, value_notes
from smalti.data.splits import hold_out
from smalti.data.values import AskedWindow, Window, require_channels, require_window

Train = TypeVar("Train", bound=ImageDataset, covariant=True)
HeldOut = TypeVar("HeldOut", bound=ImageDataset, covariant=True)

_MAX_HELD_OUT = 5000
"""Of streamed images no more are held out: these are kept in memory."""

Memory: TypeAlias = Literal["auto", "resident", "stream"]
"""Decode once and keep the squares, or decode whenever an image is shown."""


@dataclass(frozen=True)
class TrainingData(Generic[Train, HeldOut]):
    """The training images and the held-out images of a run; no image is in both.

    Attributes:
        train: images in memory, or streamed: read again in every epoch because they do not fit in memory.
        held_out: images in memory, or with masks.
        bad_files: records unreadable images while streaming; None for images in memory.
    """

    train: Train
    held_out: HeldOut
    bad_files: BadFiles | None = None


InMemoryData: TypeAlias = TrainingData[InMemoryDataset, InMemoryDataset]
RunImages: TypeAlias = TrainingData[ImageDataset, InMemoryDataset]
AnyImages: TypeAlias = TrainingData[ImageDataset, ImageDataset]


def require_given(images: InMemoryData | None, channels: int) -> None:
    """Check images that are handed to a run in place of DATA.

    Raises:
        UsageError: they are no `TrainingData`, or have other channels than the run reads.
    """
    if images is not None:
        fix = "give split_held_out(InMemoryDataset(pixels, labels), 0.05), as examples/own_parts.py does"
        require(isinstance(images, TrainingData), f"images is a {type(images).__name__}", fix)
        found = images.train.channels
        require(
            found == channels,
            f"images have {found} channels, and data.channels is {channels}",
            f"replace data.channels by {found}, and in_chans of tokenizer or backbone",
        )


@dataclass(frozen=True)
class Data(ReadOptions):
    """Which images, and how they are read.

    Resident images are decoded once; of each the centre square is kept in memory, `side` pixels wide, and crops are cut
    from that. Streamed images are decoded by workers whenever they are shown, and crops are cut from the whole picture.
    Held-out images are always resident.
    """

    path: str = setting(
        "",
        "a folder of images, a list (.txt, .csv), .zip, tar shards or Parquet files (a-{000..009}.tar, also at an "
        "address), a Hugging Face data set, what 'smalti prepare' wrote, or 'embedded'",
        resume="free",
    )
    channels: int = setting(3, "1 grey, 3 RGB, or as many as the images have")
    side: int = setting(64, "pixels")
    held_out: float = setting(0.05, "share of the images never trained on; the embedded ones have their own")
    limit: int | None = setting(None, "images at most, an even sample; none: all")
    memory: Memory = setting("auto", "resident: in memory; stream: decoded as shown; auto: what fits a quarter of it")
    full_decode: bool = setting(
        False, "streamed JPEGs are decoded at full size, as in the released code; else at a fraction, which is faster"
    )
    num_workers: int | None = setting(
        None, "processes that decode while streaming; 0: none; none: by the machine", resume="free"
    )
    worker_timeout: float = setting(180.0, "seconds after which reading one image counts as hung", resume="free")
    on_bad_image: OnBadImage = setting("replace", "another image instead (or, resident, one less), or error")
    max_bad_fraction: float = setting(0.01, "share of unreadable images above which a run stops", resume="free")
    window: AskedWindow = setting(
        None, "stored values that become black and white: MIN MAX; auto: 99.8 % of them; none: all that the format has"
    )

    group: str = setting("", GROUP)
    show_channels: tuple[int, ...] | None = setting(
        None, "channels of pictures, from 0: red, green and blue, or one; none: the first three", resume="free"
    )

    def __post_init__(self) -> None:
        require_channels(self.channels)
        require_group(self.group)
        require_window(self.window, self.channels)
        shown = self.show_channels or (0,)
        few = f"use one of 0 to {self.channels - 1}, or three of them for red, green and blue"
        require(
            len(shown) in (1, 3) and set(shown) <= set(range(self.channels)),
            f"channels {shown} of {self.channels} in pictures",
            few,
        )
        require(self.side >= 4, f"images of {self.side} pixels", "use at least 4")
        require(0 < self.held_out < 1, f"a held-out share of {self.held_out}", "choose one between 0 and 1")
        require(0 <= self.max_bad_fraction <= 1, f"max_bad_fraction {self.max_bad_fraction}", "choose one in [0, 1]")
        require(self.limit is None or self.limit >= 2, f"a limit of {self.limit} images", "use at least 2")
        require(self.num_workers is None or self.num_workers >= 0, f"{self.num_workers} workers", "use 0 or more")
        require(self.worker_timeout > 0, f"a worker_timeout of {self.worker_timeout}", "use more than 0 seconds")

    def open(self, log: Log, bad_files: Path | None = None, labelled: bool = False) -> RunImages:
        """The images for a training run: in memory where they fit.

        Args:
            log: for progress and a line about unreadable files.
            bad_files: file in which to list them, one JSON object per line.
            labelled: leave out images without a label, if others have one.

        Raises:
            DataError: no images, too few images, or too many that cannot be read.
        """
        if self.path == EMBEDDED:
            return self.load(log)
        source = self.grouped(self.source_with_notes(self.path, log))
        if labelled and source.classes:
            source = source.labelled()
        if self.fits(min(len(source), self.limit or len(source))):
            return self._split_in_memory(source, log, bad_files)
        if source.in_order:
            cause = "Parquet files and addresses are read in order only"
            fix = "make a fast copy once: smalti prepare DATA --out SHARDS; or use --data.memory resident"
            raise DataError(f"cannot stream {shown(self.path)}", cause=cause, fix=fix)
        positions = np.array(even_sample(len(source), self.limit))
        train, aside = np.arange(len(positions)), np.arange(0)
        held_out = self._validation(source.classes, log, _MAX_HELD_OUT)
        if held_out is None:
            train, aside = hold_out(
                _at_least_two(len(positions)), self.held_out, 0, _MAX_HELD_OUT, together(source.select(positions))
            )
        log.say(f"{len(train)} images are streamed; crops are cut from the whole pictures")
        if held_out is None:
            some = aside[even_sample(len(aside), _MAX_HELD_OUT)]  # a group is put aside whole, however large
            held_out = replace(self, limit=None)._read(source.select(positions[some]), log)
        train_images = source.select(positions[train])
        return TrainingData(train_images, held_out, self.bad_files_record(train_images, log, bad_files))

    def load(self, log: Log, bad_files: Path | None = None) -> InMemoryData:
        """Read all images into memory. Arguments and errors are those of `open`."""
        if self.path == EMBEDDED:
            return TrainingData(self._fitted(embedded("train")), self._fitted(embedded("test")))
        return self._split_in_memory(self.grouped(self.source_with_notes(self.path, log)), log, bad_files)

    def _read(self, source: ImageDataset, log: Log, bad_files: Path | None = None) -> InMemoryDataset:
        images = read_source(source, self, log, bad_files)
        for note in [] if _all_the_same(images.images) else value_notes(images.images):
            log.say(f"note: {note}")
        return images

    def bad_files_record(self, train: ImageDataset, log: Log, path: Path | None) -> BadFiles:
        """The record of unreadable images while `train` is streamed."""
        return BadFiles(len(train), train.name, log, path, self.max_bad_fraction, self.on_bad_image)

    def resolved(self, images: AnyImages) -> "Data":
        """The same, with `memory` set as decided: a run resumed on another machine must not decide differently."""
        if images.bad_files is not None:
            return replace(self, memory="stream")
        return self if images.train.pixels is None else replace(self, memory="resident")

    def _split_in_memory(self, source: ImageDataset, log: Log, bad_files: Path | None) -> InMemoryData:
        """All images in memory: those of the validation split are held out, or where there is none a share."""
        images = self._read(source, log, bad_files)
        held_out = self._validation(images.classes, log)
        if held_out is None:
            return split_held_out(images, self.held_out)
        return TrainingData(images.select(permutation(0, 0, len(images))), held_out)

    def _validation(self, classes: tuple[str, ...], log: Log, most: int | None = None) -> InMemoryDataset | None:
        """The images of the validation split, at most `most` of them; None where there is no such split."""
        path = read_layout(self.path, self.follow_links).validation
        if not path:
            return None
        some = replace(self, limit=min(filter(None, (self.limit, most)), default=None))
        return renumbered(read_source(self.source_with_notes(path, log), some, log), classes)

    @classmethod
    def reading(cls, path: str, channels: int, options: ReadOptions, window: AskedWindow = None) -> "Data":
        """Settings that read DATA with these options, of whatever verb they are."""
        return cls(path, channels, window=window, **read_as(options))

    def source(self, path: str, log: Log | None = None, part: Part = "train") -> ImageDataset:
        """The dataset at `path`, read as these settings say; raises as `open_source` and `measured_window`."""
        return open_source(path, self.channels, log, self, part, self.measured(log).known_window)

    def grouped(self, source: ImageDataset) -> ImageDataset:
        """A dataset with its groups, if `group` asks for some."""
        if self.group:
            source.groups = numbered(source, self.group)
        return source

    def source_with_notes(self, path: str, log: Log) -> ImageDataset:
        """The same as `source`, with its notes in the log: splits, what is left out, pages that are not read."""
        return open_with_notes(path, self.channels, log, self, window=self.measured(log).known_window)

    @property
    def known_window(self) -> Window | None:
        """The value window, once it is measured where that is asked for."""
        require(
            self.window != "auto", "the value window of a run that was given its images is auto", "give it outright"
        )
        assert self.window != "auto"
        return self.window

    def measured(self, log: Log | None = None) -> "Data":
        """The same, with the value window of prepared images, or as measured on those at `path` where it is `auto`."""
        if self.window not in (None, "auto"):
            return self
        folder = Path(self.path).expanduser()
        if self.path and folder.is_dir() and not is_prepared(folder):
            layout = read_layout(self.path, self.follow_links)
            folder = layout.splits.get("train", layout.root)
        made = prepared_window(folder) if self.path else None
        if made is not None:
            if len(made) not in (2, 2 * self.channels):
                cause = str(other_channels(len(made) // 2, self.channels))
                raise DataError(f"cannot read {self.path}", cause=cause, fix=channels_remedy(cause))
            return replace(self, window=made)
        if self.window is None:
            return self
        window = measured_window(replace(self, window=None).source(self.path, log), log or Log())
        if log is not None:
            ranges = [f"{low:g} to {high:g}" for low, high in zip(window[::2], window[1::2], strict=True)]
            each = " of the channels in turn" if len(ranges) > 1 else ""
            log.say(f"values from {', '.join(ranges)}{each} are black and white")
        return replace(self, window=window)

    def fits(self, count: int) -> bool:
        """Whether `count` images are kept in memory."""
        if self.memory != "auto":
            return self.memory == "resident"
        return count * self.channels * self.side**2 <= usable_memory() / local_world_size() / 4

    def _fitted(self, images: InMemoryDataset) -> InMemoryDataset:
        """The embedded images in the requested size and number."""
        chosen = images if self.limit is None else images.select(np.arange(min(self.limit, len(images))))
        pixels = chosen.images
        if pixels.shape[-1] != self.side:
            squares = [square(image[0].numpy()[..., None], self.side) for image in pixels]
            pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
        return InMemoryDataset(pixels, chosen.labels, chosen.classes).with_channels(self.channels)


def read_source(source: ImageDataset, data: Data, log: Log, bad_files: Path | None = None) -> InMemoryDataset:
    """Decode a dataset into memory with one thread per core; unreadable images are listed and left out."""
    if source.pixels is not None:  # already in memory
        return InMemoryDataset(source.pixels, source.all_labels(), source.classes, source.groups)
    positions = even_sample(len(source), data.limit)
    failed: dict[str, str] = {}
    pixels = np.empty((len(positions), data.channels, data.side, data.side), np.uint8)
    labels: list[int] = []
    kept: list[int] = []
    with map_images(lambda place: read_square(source, place, data.side), positions, log, "read images") as found:
        for position, result in found:
            if isinstance(result, DataError):
                failed[source.name(position)] = result.cause
            else:
                pixels[len(labels)] = result.image.transpose(2, 0, 1)
                labels.append(result.label)
                kept.append(position)
    bad = LeftOutFiles(len(positions), bad_files, data.max_bad_fraction, FLAG, sorted(failed.items()))
    if bad.found and data.on_bad_image == "error":
        bad.write()
        path, reason = bad.found[0]
        raise DataError(f"cannot read {path}", cause=reason, fix="remove it, or use --data.on-bad-image replace")
    bad.finish(log)
    if _all_the_same(torch.from_numpy(pixels[: len(labels)])):
        log.say(f"warning: all {len(labels)} images are the same, so what is learned from them means nothing")
    groups = None if source.groups is None else source.groups[np.array(kept, np.int64)]
    return InMemoryDataset(
        torch.from_numpy(pixels[: len(labels)]), torch.tensor(labels, dtype=torch.int64), source.classes, groups
    )


def _all_the_same(images: UInt8[Tensor, "n C H W"]) -> bool:
    """Whether there are several images, and all are equal: that is said, and nothing else about their values."""
    return len(images) > 1 and all(torch.equal(images[0], other) for other in images[1:])


def split_held_out(images: InMemoryDataset, share: float) -> InMemoryData:
    """Hold out a share of the images, chosen by a hash of their position; copies are on the same side.

    The others are shuffled once, so that the first thousand, used to initialise a tokenizer, are of all classes.
    """
    train, aside = hold_out(_at_least_two(len(images)), share, 0, groups=together(images))
    return TrainingData(images.select(train[permutation(0, 0, len(train))]), images.select(aside))


def official_splits(path: str, test: str, follow: FollowLinks = "inside") -> tuple[str, str]:
    """Locations of the training images and of the official test images; the second is empty where there are none.

    A folder with splits has both (see `read_layout`), and where it has no test split, that of validation is the test;
    else `test` is separate DATA.

    Raises:
        UsageError: `test` is given for the embedded images, which have their own test images.
    """
    if path == EMBEDDED:
        require(not test, f"test images {test}, and the embedded ones have their own", "leave --test out")
        return path, test
    layout = read_layout(path, follow)
    return layout.train, test or layout.test_or_validation


def load_splits(data: Data, train: str, test: str, log: Log) -> InMemoryData:
    """Training and test images in memory.

    Raises:
        DataError: the training images have labels, and the test images have none, or others.
    """
    log.say(f"training images from {train}, test images from {test}")
    train_images = read_source(data.grouped(data.source_with_notes(train, log)), data, log)
    test_images = read_source(data.source_with_notes(test, log), data, log)
    order = permutation(0, 0, len(test_images))
    return TrainingData(train_images, _like(test_images.select(order), train_images.classes, test))


def _like(test: InMemoryDataset, classes: tuple[str, ...], where: str) -> InMemoryDataset:
    """The test images with the class numbers of the training images, matched by class name."""
    if classes and not test.classes:
        raise DataError(f"no labels in {where}", cause="the training images have some", fix="check --test")
    test, known = test.labelled(), set(classes)
    if unknown := [name for name in test.present_classes() if known and name not in known]:
        more = f", first '{unknown[0]}'{but_a_twin(unknown[0], classes)}"
        raise DataError(
            f"{len(unknown)} classes of {where} are not among the training images{more}", fix="check --test"
        )
    return renumbered(test, classes)


def renumbered(images: InMemoryDataset, classes: tuple[str, ...]) -> InMemoryDataset:
    """The images with classes numbered as in `classes`, matched by name; classes that are not among them come after."""
    if not (classes and images.classes):
        return images
    place = {name: number for number, name in enumerate(dict.fromkeys(classes + images.classes))}
    numbers = torch.tensor([place[name] for name in images.classes])
    labels = torch.where(images.labels < 0, images.labels, numbers[images.labels])
    return InMemoryDataset(images.images, labels, tuple(place), images.groups)


def unlabelled(data: Data, path: str, what: str) -> DataError:
    """The error for DATA at `path` that lacks labels; it says what was looked for, and what is there."""
    cause = "" if path == EMBEDDED or not path else data.source(path).no_labels
    return DataError(what, cause=cause, fix="put images into one folder a class, or name a column label")


def _at_least_two(length: int) -> int:
    if length < 2:
        raise DataError(f"only {length} readable image", cause="training and measuring need at least 2")
    return length


def affordable(data: Data, seconds: float, trial: int = 16) -> int:
    """Number of images that can be decoded in about `seconds`, timed on `trial` of them; at least 64."""
    source = data.source(data.path)

    def look(position: int) -> Sample | DataError:
        return try_read(lambda place: read_square(source, place, data.side), position)

    began = time.perf_counter()
    with ThreadPoolExecutor(usable_processors()) as threads:
        list(threads.map(look, even_sample(len(source), trial)))
    an_image = (time.perf_counter() - began) / min(trial, len(source))
    return max(64, int(seconds / an_image))
