"""Reads many images with one thread per core, as squares or for pixel statistics; unreadable ones are separated."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from smalti.core.contracts import Sample
from smalti.core.errors import DataError, UsageError
from smalti.core.log import Bar, Log
from smalti.core.machine import usable_processors
from smalti.core.rng import Stream, fold
from smalti.data.bands import channels_of, stored_values
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.formats import channels_remedy
from smalti.data.resize import resized
from smalti.data.values import Window, for_8_bits

T = TypeVar("T")

Normalisation: TypeAlias = Literal["half", "imagenet", "auto"]
"""0.5 for everything (the released code's default), ImageNet's, or as measured."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MAX_IMAGES = 10_000
_MIN_STD = 1e-3
_MAX_LOOKED_AT = 16
_MEASURED, _VALUES_OF_EACH = 256, 4096
"""Images whose values are looked at, and values of each, at most."""
_INSIDE = (0.001, 0.999)
"""The quantiles that become black and white."""
GREY = "one is enough (channels 1, in tokenizer and backbone too): a third of the memory, steps hardly shorter"
MIN_RANGE = 0.08
"""Images that use less of the range of values are worth a note: 12 bits in files of 16 use 6 % at most."""
_MANY_DARK = 0.05
"""The share of nearly black images from which they are worth a note."""
Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Means and standard deviations, a value a channel, of pixels in [0, 1]."""


@contextmanager
def map_images(
    look: Callable[[int], T], positions: Sequence[int], log: Log, title: str
) -> Iterator[Iterable[tuple[int, T | DataError]]]:
    """Call `look` for images with one thread per core, with progress: yields positions with the result or the error.

    This is a context manager, so that its threads stop on exit, even an early one: a generator would end only when it
    is garbage collected, which may happen on one of these threads.
    """
    with (
        warnings.catch_warnings(),
        log.progress(title, len(positions)) as bar,
        ThreadPoolExecutor(usable_processors()) as threads,
    ):
        warnings.simplefilter("ignore")
        results = ordered_map(threads, lambda position: try_read(look, position), positions)
        try:
            yield _counted(zip(positions, results, strict=True), bar)
        finally:
            threads.shutdown(cancel_futures=True)


def _counted(results: Iterable[tuple[int, T | DataError]], bar: Bar) -> Iterator[tuple[int, T | DataError]]:
    unreadable = 0
    for number, (position, result) in enumerate(results, start=1):
        yield position, result
        unreadable += isinstance(result, DataError)
        bar.update(number, f"{unreadable} unreadable" if unreadable else "")


def ordered_map(threads: Executor, function: Callable[[int], T], items: Sequence[int], ahead: int = 256) -> Iterator[T]:
    """`map` on threads, at most `ahead` items ahead of the consumer, so that many results do not fill the memory."""
    for start in range(0, len(items), ahead):
        yield from threads.map(function, items[start : start + ahead])


def try_read(look: Callable[[int], T], position: int) -> T | DataError:
    """The result of `look` for a position, or its DataError."""
    try:
        return look(position)
    except DataError as error:
        return error


def even_sample(length: int, limit: int | None) -> list[int]:
    """At most `limit` positions below `length`: one, drawn by a hash, of each of as many equal parts.

    Positions at equal distances would all have one class where classes take turns.
    """
    if limit is None or length <= limit:
        return list(range(length))
    parts = np.arange(limit + 1) * length // limit
    drawn = fold(np.arange(limit), Stream.SPLIT) % np.diff(parts).astype(np.uint64)
    places: list[int] = (parts[:-1] + drawn.astype(np.int64)).tolist()
    return places


def spread_over_classes(labels: Int[Tensor, "n"], count: int) -> NDArray[np.int64]:
    """At most `count` positions, as evenly as can be over the classes that occur, and inside each; sorted by class."""
    numbers = labels.numpy()
    classes = np.unique(numbers)
    classes = classes[even_sample(len(classes), count)]
    members = [np.flatnonzero(numbers == number) for number in classes]
    taken = [0] * len(members)
    for _ in range(min(count, sum(map(len, members)))):
        unused = [place for place, found in enumerate(members) if taken[place] < len(found)]
        taken[min(unused, key=taken.__getitem__)] += 1
    chosen = [found[even_sample(len(found), number)] for found, number in zip(members, taken, strict=True)]
    return np.concatenate(chosen)


def read_square(source: ImageDataset, position: int, side: int) -> Sample:
    """The centre square of an image, `side` pixels wide; a `DataError` if it cannot be read."""
    sample = source.shrunk(position, side)
    return sample._replace(image=square(sample.image, side))


def square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The centre square of pixels (H, W, C), resized to (`side`, `side`, C), uint8."""
    return centre_crop(image, (side, side))


def centre_crop(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The largest part in the centre of pixels (H, W, C) that has the shape of `size` (h, w), resized to it, uint8."""
    top, left, tall, wide = centre_box(image.shape[0], image.shape[1], size)
    return resized(image, size, Image.Resampling.BICUBIC, (left, top, left + wide, top + tall))


def centre_box(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width, in pixels, of the part that `centre_crop` shows."""
    tall, wide = min(height, round(width * size[0] / size[1])), min(width, round(height * size[1] / size[0]))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


@dataclass(frozen=True)
class CentreCrops:
    """Renders the centre of images in one size (height, width): a `Job` of data workers that needs no random key."""

    source: ImageDataset
    size: tuple[int, int]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.source.channels, *self.size),)

    def __len__(self) -> int:
        return len(self.source)

    def name(self, position: int) -> str:
        return self.source.name(position)

    def __call__(self, position: int, key: int, out: Sequence[NDArray[np.uint8]]) -> None:
        pixels = self.source.shrunk(position, max(self.size)).image
        out[0][:] = centre_crop(pixels, self.size).transpose(2, 0, 1)


def channels_in(source: ImageDataset) -> int:
    """The channels of the images, as those of some are: 3 unless all of them have another number; grey counts as 3."""
    if source.pixels is not None:
        return source.channels
    places = even_sample(len(source), _MAX_LOOKED_AT)
    found = {try_read(lambda place: channels_of(source.read(place), source.name(place)), place) for place in places}
    counts = {count for count in found if isinstance(count, int)}
    return counts.pop() if len(counts) == 1 and not counts & {1, 3} else 3


def sample_squares(images: ImageDataset, count: int, side: int) -> UInt8[Tensor, "B C H W"]:
    """About `count` images as squares: the first resident ones, or readable stored ones, evenly spaced."""
    if images.pixels is not None:
        return images.pixels[:count]
    positions = even_sample(len(images), count)
    with map_images(lambda position: read_square(images, position, side), positions, Log(), "look") as found:
        results = [result for _, result in found]
    pixels = [result.image for result in results if not isinstance(result, DataError)]
    if not pixels:
        cause = next(result.cause for result in results if isinstance(result, DataError))
        raise DataError(f"none of {len(results)} images can be read", cause=cause, fix=channels_remedy(cause))
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def statistics(kind: Normalisation, images: ImageDataset, channels: int, side: int) -> Statistics:
    """Mean and standard deviation of every channel.

    Args:
        images: the training images; at most 10 000 of them are read.
        side: the centre square is first resized to this many pixels.

    Raises:
        UsageError: ImageNet's statistics for images that do not have three channels.
    """
    if kind != "auto":
        return fixed_statistics(kind, channels)
    return measure_statistics(sample_squares(images, _MAX_IMAGES, side))


def fixed_statistics(kind: Literal["half", "imagenet"], channels: int) -> Statistics:
    """As `statistics`, of those that are known without images."""
    if kind == "half":
        return (0.5,) * channels, (0.5,) * channels
    if channels != 3:
        raise UsageError(
            f"ImageNet's statistics for {channels} channel{'s' if channels > 1 else ''}",
            fix="use --normalisation auto or half",
        )
    return _IMAGENET


def measure_statistics(images: torch.Tensor) -> Statistics:
    """Statistics of uint8 images (B, C, H, W), rounded to four digits, so that the last bits of a sum do not matter."""
    total, squares, count = torch.zeros(images.shape[1]).double(), torch.zeros(images.shape[1]).double(), 0
    for part in images.split(256):
        pixels = part.double() / 255
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
        count += pixels[:, 0].numel()
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(_MIN_STD)
    return tuple(round(value, 4) for value in mean.tolist()), tuple(round(value, 4) for value in std.tolist())


def measured_window(source: ImageDataset, log: Log) -> Window:
    """The stored values between which 99.8 % of those of some evenly spaced images lie.

    Of images that are neither grey nor RGB those of each channel: bands of a satellite have ranges of their own.
    Where some images have 8 bits, those of the others, if the window then leaves the former as they are.

    Raises:
        DataError: no image can be read, they differ in the kind of their values, or all values are the same.
    """
    positions = even_sample(len(source), _MEASURED)

    bands = 1 if source.channels in (1, 3) else source.channels

    def some_values(position: int) -> NDArray[Any]:
        values = stored_values(source.read(position), source.name(position), source.channels).reshape(-1, bands)
        return values[:: max(1, len(values) // _VALUES_OF_EACH)]

    with map_images(some_values, positions, log, "measure values") as found:
        results = [result for _, result in found]
    values = [result for result in results if not isinstance(result, DataError)]
    kinds = sorted({str(part.dtype.newbyteorder("=")) for part in values})
    deeper = [part for part in values if part.dtype != np.uint8] or values
    if len({part.dtype.newbyteorder("=") for part in deeper}) != 1:
        raise _no_window(kinds, next((result.cause for result in results if isinstance(result, DataError)), ""))
    bounds = np.quantile(np.concatenate(deeper), _INSIDE, axis=0).T
    for number, (low, high) in enumerate(bounds, 1):
        if not low < high:
            cause = f"almost all of their values are {low:g}" + (f" in channel {number}" if bands > 1 else "")
            raise DataError("no value window fits these images", cause=cause)
    window = tuple(float(bound) for bound in bounds.reshape(-1))
    if len(kinds) > 1 and for_8_bits(window) is not None:
        raise _no_window(kinds)
    return window


def _no_window(kinds: list[str], reason: str = "") -> DataError:
    """The error for images of several kinds of values, or of none as they cannot be read, for the reason given."""
    remedy = channels_remedy(reason) if not kinds else ""
    cause = f"they have {' and '.join(kinds)} values" if kinds else "none of them can be read"
    fix = remedy or "give one, or leave it out"
    return DataError("no one value window fits these images", cause=reason if remedy else cause, fix=fix)


def value_notes(images: UInt8[Tensor, "n C H W"]) -> list[str]:
    """What is unusual about the values of images, one sentence each: little of the range used, dark or grey ones."""
    some = images[:: max(1, len(images) // _MEASURED)]
    counts = torch.bincount(some.reshape(-1).int(), minlength=256).double().cumsum(0) / some.numel()
    low, high = (int((counts < share).sum()) for share in _INSIDE)
    if high == low:
        return [f"almost every pixel of these images has the value {low} of 255: there is nothing to learn"]
    if high - low < MIN_RANGE * 255:
        share = (high - low) / 255
        return [f"the values of these images use {share:.1%} of their range; --data.window auto makes it all of it"]
    brightest = some.flatten(1).amax(1)
    dark = float(((brightest > 0) & (brightest < MIN_RANGE * 255)).float().mean())
    notes = [f"{dark:.0%} of these images are nearly black; smalti check says whether --data.window mends it"]
    notes = notes if dark >= _MANY_DARK else []
    if some.shape[1] == 3 and bool((some == some[:, :1]).all()):
        notes.append(f"every image is grey, its three channels are the same; {GREY}")
    return notes
