"""Batches on their way: in shared memory that is used again, in the order in which they will be asked for.

The memory has no name: its file is gone as soon as it is open, so that nothing stays however the processes end.
"""

import errno
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from ctypes import Array, c_ubyte
from dataclasses import dataclass, field
from itertools import accumulate
from multiprocessing.sharedctypes import RawArray
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from smalti.core.errors import DataError
from smalti.data.workers.jobs import Bad, Rendered, Task

IDLE, STARTING = -1, -2
"""In the place of the image that a worker is reading."""

_CACHE_LINE = 64
"""Bytes."""

_CHUNK = 8
"""Rows: enough that messages cost little, few enough that workers end together."""

_CHUNKS = 8
"""Of a batch for one worker at most; what waits in its pipe must fit there."""


class Layout(NamedTuple):
    """How many batches of how many rows, the shapes of a row's arrays, and how many workers."""

    slots: int
    rows: int
    shapes: tuple[tuple[int, ...], ...]
    workers: int


class Slots:
    """Memory for a few batches that a process shares with its workers: a worker that is sent this object sees the same.

    Attributes:
        positions, keys: what is to be rendered, slots x rows.
        shown: what each row shows, slots x rows.
        wanted: whether somebody still waits for a slot.
        reading: which image each worker is reading and since when (nanoseconds of the monotonic clock), workers x 2.
        pixels: for each shape, slots x rows x shape.

    Raises:
        DataError: there is not enough shared memory.
    """

    def __init__(self, layout: Layout, memory: Array[c_ubyte] | None = None) -> None:
        self.layout = layout
        table = (layout.slots, layout.rows)
        kinds: list[tuple[DTypeLike, tuple[int, ...]]] = [
            (np.int64, table),
            (np.uint64, table),
            (np.int64, table),
            (np.bool_, (layout.slots,)),
            (np.int64, (layout.workers, 2)),
            *((np.uint8, (*table, *shape)) for shape in layout.shapes),
        ]
        sizes = [math.prod(shape) * np.dtype(kind).itemsize for kind, shape in kinds]
        starts = list(accumulate((-(-size // _CACHE_LINE) * _CACHE_LINE for size in sizes), initial=0))
        self.memory = _allocate(starts[-1]) if memory is None else memory
        shared = memoryview(self.memory)
        arrays = [np.ndarray(shape, kind, shared, start) for (kind, shape), start in zip(kinds, starts, strict=False)]
        self.positions, self.keys, self.shown, self.wanted, self.reading = arrays[:5]
        self.pixels: list[NDArray[np.uint8]] = arrays[5:]

    def __reduce__(self) -> tuple[object, ...]:
        return Slots, (self.layout, self.memory)

    def publish(self, worker: int, position: int) -> None:
        """Say what a worker is doing from now on."""
        self.reading[worker, 1] = time.monotonic_ns()
        self.reading[worker, 0] = position


def _allocate(size: int) -> Array[c_ubyte]:
    folders = [folder for folder in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(folder)]  # as `RawArray` does
    try:
        # A file would be made larger than its disk without complaint, and writing to it would then kill this process.
        if max(shutil.disk_usage(folder).free for folder in folders) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return RawArray(c_ubyte, size)
    except OSError as error:
        raise DataError(
            f"cannot share {size / 2**20:.1f} MiB of images with data workers",
            cause=error.strerror or str(error),
            fix="use --num-workers 0 or a smaller batch",
        ) from error


class Chunk(NamedTuple):
    """Rows of the batch in a slot, `start` to `stop`: what a worker is given."""

    slot: int
    start: int
    stop: int


class Reply(NamedTuple):
    """What a worker says about a chunk when it is done. A failure is an error of the kinds of `render_row`."""

    bad: Sequence[Bad]
    failure: DataError | RuntimeError | None


@dataclass
class Batch:
    """A task on its way.

    Attributes:
        slot: where it is rendered; None: not yet.
        waiting: chunks that nobody is working at.
        running: how many chunks somebody is working at.
        replies: what was said about those that are finished, by their first row.
        dropped: nobody waits for it any more.
    """

    task: Task
    slot: int | None = None
    waiting: list[Chunk] = field(default_factory=list)
    running: int = 0
    replies: dict[int, Reply] = field(default_factory=dict)
    dropped: bool = False

    @property
    def done(self) -> bool:
        """Whether every row has been dealt with."""
        return self.slot is not None and not self.waiting and not self.running


class Ring:
    """Which batch is where in `slots`. A slot is used again only when nobody could still write to it."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._placed: list[Batch | None] = [None] * slots.layout.slots
        self._queue: dict[tuple[bytes, bytes], Batch] = {}
        self._in_use: Batch | None = None

    def add(self, task: Task) -> Batch:
        """Put a task at the end, unless it is known."""
        if len(task.positions) > self._slots.layout.rows:
            raise ValueError(f"a batch of {len(task.positions)} rows where there is room for {self._slots.layout.rows}")
        return self._queue.setdefault(_identity(task), Batch(Task(task.positions.copy(), task.keys.copy())))

    def turn_to(self, task: Task) -> Batch:
        """The batch of a task. What was to come before it is dropped, and all if it was not expected."""
        if self._in_use is not None:
            self._drop(self._in_use)
            self._in_use = None
        while self._queue and (first := next(iter(self._queue))) != _identity(task):
            self._drop(self._queue.pop(first))
        return self.add(task)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks that can be worked at, of the earliest batch first; they count as given out."""
        for batch in self._queue.values():
            if batch.slot is None:
                if None not in self._placed:
                    return
                self._place(batch, self._placed.index(None))
            while batch.waiting:
                batch.running += 1
                yield batch.waiting.pop(0)

    def returned(self, chunk: Chunk, reply: Reply | None) -> None:
        """A chunk has been worked at; None: in vain, so that it has to be given out again."""
        batch = self._placed[chunk.slot]
        assert batch is not None
        batch.running -= 1
        if reply is not None:
            batch.replies[chunk.start] = reply
        elif not batch.dropped:
            batch.waiting.append(chunk)
        self._free_if_quiet(batch)

    def take(self, batch: Batch) -> Rendered:
        """The pixels of a batch that is done; they stay until `turn_to`.

        Raises:
            DataError, RuntimeError: what was wrong with the first row that could not be rendered.
        """
        del self._queue[_identity(batch.task)]
        self._in_use = batch
        bad: list[Bad] = []
        for _, reply in sorted(batch.replies.items()):
            if reply.failure is not None:
                raise reply.failure
            bad += reply.bad
        rows = len(batch.task.positions)
        arrays = tuple(array[batch.slot, :rows] for array in self._slots.pixels)
        return Rendered(arrays, self._slots.shown[batch.slot, :rows].copy(), tuple(bad))

    def _place(self, batch: Batch, slot: int) -> None:
        rows, workers = len(batch.task.positions), self._slots.layout.workers
        self._slots.positions[slot, :rows], self._slots.keys[slot, :rows] = batch.task
        self._slots.wanted[slot] = True
        step = max(min(max(_CHUNK, -(-rows // (_CHUNKS * workers))), -(-rows // workers)), 1)
        batch.slot, batch.waiting = slot, [Chunk(slot, at, min(at + step, rows)) for at in range(0, rows, step)]
        self._placed[slot] = batch

    def _drop(self, batch: Batch) -> None:
        batch.dropped = True
        batch.waiting.clear()
        if batch.slot is not None:
            self._slots.wanted[batch.slot] = False  # workers skip what is left of it
            self._free_if_quiet(batch)

    def _free_if_quiet(self, batch: Batch) -> None:
        if batch.dropped and not batch.running and batch.slot is not None:
            self._placed[batch.slot] = None


def _identity(task: Task) -> tuple[bytes, bytes]:
    return task.positions.tobytes(), task.keys.tobytes()
