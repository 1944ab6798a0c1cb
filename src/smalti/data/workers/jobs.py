"""Rendering batches image by image, another image in the place of one that cannot be read; here, in this process."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from smalti.core.errors import DataError
from smalti.core.rng import Stream, fold

_ATTEMPTS = 100


@runtime_checkable
class Job(Protocol):
    """Renders one image. It runs in a worker process, so it must be picklable."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the uint8 arrays that make up a row of a batch."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def name(self, position: int) -> str:
        """Where an image is, for people."""
        ...

    def __call__(self, position: int, key: int, out: Sequence[NDArray[np.uint8]]) -> None:
        """Fill all of `out`.

        Raises:
            DataError: the image cannot be read. Every other exception is taken for a bug.
        """
        ...


class Task(NamedTuple):
    """A batch to render: which images, and a 64-bit key each."""

    positions: NDArray[np.int64]
    keys: NDArray[np.uint64]


class Bad(NamedTuple):
    """An image that cannot be read.

    Attributes:
        quarantined: reading it killed or hung a worker; it must never be opened again, also after a resume.
    """

    position: int
    reason: str
    quarantined: bool


class Rendered(NamedTuple):
    """A batch.

    Attributes:
        arrays: one for each of the job's `shapes`, with a leading axis of rows; valid until the next call.
        shown: which image each row shows; not the one asked for where that cannot be read.
        bad: what came up on the way.
    """

    arrays: tuple[NDArray[np.uint8], ...]
    shown: NDArray[np.int64]
    bad: tuple[Bad, ...]


class Renderer(ABC):
    """Renders batches. What it renders depends on the task and on what is quarantined alone."""

    @abstractmethod
    def prefetch(self, tasks: Sequence[Task]) -> None:
        """These will be asked for next, in this order: begin with them."""

    @abstractmethod
    def __call__(self, task: Task) -> Rendered:
        """Render a batch.

        Raises:
            DataError: an image and all those that could take its place cannot be read.
            RuntimeError: the job has a bug.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back memory and processes; a second time does nothing."""


def candidates(position: int, length: int) -> Iterator[int]:
    """An image itself, then a hundred to try where it cannot be read: the same ones in every epoch, on every machine.

    They are drawn by a hash of `position` from `length` images.
    """
    yield position
    for attempt in range(_ATTEMPTS):
        yield int(fold(position, attempt, Stream.REPLACE) % length)


def render_row(
    job: Job,
    position: int,
    key: int,
    out: Sequence[NDArray[np.uint8]],
    avoid: Collection[int],
    opening: Callable[[int], None],
) -> tuple[int, list[Bad]]:
    """Fill one row, if need be with another image; the key stays.

    Args:
        avoid: images that must not be opened.
        opening: is told which image comes next.

    Returns:
        The image that is shown, and those that could not be.

    Raises:
        DataError: none can be read.
        RuntimeError: the job has a bug.
    """
    bad: list[Bad] = []
    for candidate in candidates(position, len(job)):
        if candidate in avoid or any(candidate == item.position for item in bad):
            continue
        opening(candidate)
        try:
            job(candidate, key, out)
            return candidate, bad
        except DataError as error:
            bad.append(Bad(candidate, error.cause or error.what, quarantined=False))
        except MemoryError:
            bad.append(Bad(candidate, "not enough memory", quarantined=False))
        except Exception as error:
            raise RuntimeError(f"rendering {job.name(candidate)} failed, and not because of the image") from error
    first = bad[0] if bad else Bad(position, "it killed or hung its reader", quarantined=True)
    number = max(len(bad), 1)
    raise DataError(
        f"none of {number} images in a row can be read, first {job.name(first.position)}", cause=first.reason
    )


class Inline(Renderer):
    """Renders in this process: for small images, for debugging, and where processes are not to be had."""

    def __init__(self, job: Job, quarantined: Collection[int] = frozenset()) -> None:
        self._job, self._avoid = job, frozenset(quarantined)
        self._arrays: tuple[NDArray[np.uint8], ...] = ()

    def prefetch(self, tasks: Sequence[Task]) -> None:
        """Nothing can be done before it is asked for."""

    def __call__(self, task: Task) -> Rendered:
        """As `Renderer` says."""
        rows = len(task.positions)
        if not self._arrays or len(self._arrays[0]) < rows:
            self._arrays = tuple(np.empty((rows, *shape), np.uint8) for shape in self._job.shapes)
        arrays = tuple(array[:rows] for array in self._arrays)
        shown, bad = np.empty(rows, np.int64), list[Bad]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row, (position, key) in enumerate(zip(task.positions.tolist(), task.keys.tolist(), strict=True)):
                out = [array[row] for array in arrays]
                shown[row], found = render_row(self._job, position, key, out, self._avoid, _nobody)
                bad += found
        return Rendered(arrays, shown, tuple(bad))

    def close(self) -> None:
        """As `Renderer` says."""
        self._arrays = ()


def _nobody(position: int) -> None:
    """Nobody needs to know which image is being opened."""
