"""Renders batches image by image, replacing images that cannot be read; `InlineRenderer` does so in this process."""

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
        """The shapes of the uint8 arrays that make up one row of a batch, without the batch axis."""
        ...

    def __len__(self) -> int: ...

    def name(self, position: int) -> str: ...

    def __call__(self, position: int, key: int, out: Sequence[NDArray[np.uint8]]) -> None:
        """Render an image into `out`, and fill all of it.

        Args:
            key: the 64-bit random key of this row.
            out: uint8 arrays with the shapes of `shapes`, values 0 to 255.

        Raises:
            DataError: the image cannot be read. Every other exception is treated as a bug.
        """
        ...


class Task(NamedTuple):
    """A batch of B images to render: their positions, int64, and the random key of each row, uint64, both (B,)."""

    positions: NDArray[np.int64]
    keys: NDArray[np.uint64]


class Bad(NamedTuple):
    """An image that cannot be read.

    Attributes:
        position: the index of the image.
        reason: why it cannot be read.
        quarantined: whether reading it killed or hung a worker; if so it must never be opened again, even after a
            resume.
    """

    position: int
    reason: str
    quarantined: bool


class Rendered(NamedTuple):
    """A rendered batch of B rows.

    Attributes:
        arrays: for each of the job's `shapes`, a uint8 array of shape (B, *shape); valid until the next call.
        shown: the index of the image in each row, int64, shape (B,); differs from the task's where that image cannot be
            read.
        bad: unreadable images that were found meanwhile.
    """

    arrays: tuple[NDArray[np.uint8], ...]
    shown: NDArray[np.int64]
    bad: tuple[Bad, ...]


class Renderer(ABC):
    """Renders batches. The result depends only on the task and on which images are quarantined."""

    @abstractmethod
    def prefetch(self, tasks: Sequence[Task]) -> None:
        """Start rendering these tasks, which will be requested next, in this order."""

    @abstractmethod
    def __call__(self, task: Task) -> Rendered:
        """Render a batch.

        Raises:
            DataError: an image and all its replacement candidates cannot be read.
            RuntimeError: the job has a bug.
        """

    @abstractmethod
    def close(self) -> None:
        """Release memory and processes; calling it again does nothing."""


def candidates(position: int, length: int) -> Iterator[int]:
    """Yield an image and 100 candidates to replace it, by a hash of its position: always and everywhere the same."""
    yield position
    for attempt in range(_ATTEMPTS):
        yield int(fold(position, attempt, Stream.REPLACE) % length)


def render_row(
    job: Job,
    position: int,
    key: int,
    out: Sequence[NDArray[np.uint8]],
    avoid: Collection[int],
    opening: Callable[[int], None] = lambda position: None,
) -> tuple[int, list[Bad]]:
    """Render one row; if the image cannot be read, render a replacement with the same key.

    Args:
        avoid: indices of images that must not be opened.
        opening: called with the index of each image before it is opened.

    Returns:
        The index of the image in the row, and the images that could not be read.

    Raises:
        DataError: neither the image nor any candidate can be read.
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


class InlineRenderer(Renderer):
    """Renders in this process: for small images, for debugging, and where no worker processes can be started."""

    def __init__(self, job: Job, quarantined: Collection[int] = frozenset()) -> None:
        self._job, self._avoid = job, frozenset(quarantined)
        self._arrays: tuple[NDArray[np.uint8], ...] = ()

    def prefetch(self, tasks: Sequence[Task]) -> None:
        """Nothing to do: batches are rendered when they are requested."""

    def __call__(self, task: Task) -> Rendered:
        rows = len(task.positions)
        if not self._arrays or len(self._arrays[0]) < rows:
            self._arrays = tuple(np.empty((rows, *shape), np.uint8) for shape in self._job.shapes)
        arrays = tuple(array[:rows] for array in self._arrays)
        shown, bad = np.empty(rows, np.int64), list[Bad]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row, (position, key) in enumerate(zip(task.positions.tolist(), task.keys.tolist(), strict=True)):
                out = [array[row] for array in arrays]
                shown[row], found = render_row(self._job, position, key, out, self._avoid)
                bad += found
        return Rendered(arrays, shown, tuple(bad))

    def close(self) -> None:
        self._arrays = ()
