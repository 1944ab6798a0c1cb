"""Batches being rendered: reusable slots in shared memory, and a queue in the order in which batches are requested.

The shared memory has no name: its file is deleted as soon as it is open, so nothing remains however the processes end.
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
"""Values of `Slots.reading` for a worker that is reading no image."""

_CACHE_LINE = 64
"""Bytes."""

_CHUNK = 8
"""Rows: large enough that messages cost little, small enough that workers finish at about the same time."""

_CHUNKS = 8
"""At most per batch and worker; the pending messages must fit in the worker's pipe."""


class Layout(NamedTuple):
    """The number of slots, the rows of a slot, the shapes of a row's arrays, and the number of workers."""

    slots: int
    rows: int
    shapes: tuple[tuple[int, ...], ...]
    workers: int


class Slots:
    """Shared memory for a few batches. A worker that receives this object (by pickling) sees the same memory.

    Attributes:
        positions: the index of the image to render in each row, int64, (slots, rows).
        keys: the random key of each row, uint64, (slots, rows).
        shown: the index of the image rendered in each row, int64, (slots, rows).
        wanted: whether the batch in a slot is still needed, bool, (slots,).
        reading: the index of the image each worker is reading, and since when in nanoseconds of the monotonic clock;
            int64, (workers, 2).
        pixels: for each shape, a uint8 array (slots, rows, *shape).

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
        """Record the image that a worker reads from now on, or `IDLE` or `STARTING`."""
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
    """The unit of work for a worker: rows `start` to `stop` (exclusive) of the batch in a slot."""

    slot: int
    start: int
    stop: int


class Reply(NamedTuple):
    """A worker's answer when a chunk is done. `failure` is an error as `render_row` raises it."""

    bad: Sequence[Bad]
    failure: DataError | RuntimeError | None


@dataclass
class Batch:
    """A task being rendered.

    Attributes:
        slot: the slot it is rendered in; None if it has none yet.
        waiting: chunks not yet given to a worker.
        running: the number of chunks given to workers and not yet returned.
        replies: the replies for finished chunks, by first row.
        dropped: whether the batch is no longer needed.
    """

    task: Task
    slot: int | None = None
    waiting: list[Chunk] = field(default_factory=list)
    running: int = 0
    replies: dict[int, Reply] = field(default_factory=dict)
    dropped: bool = False

    @property
    def done(self) -> bool:
        return self.slot is not None and not self.waiting and not self.running


class Ring:
    """Assigns batches to slots. A slot is reused only when no worker can still write to it."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._placed: list[Batch | None] = [None] * slots.layout.slots
        self._queue: dict[tuple[bytes, bytes], Batch] = {}
        self._in_use: Batch | None = None

    def add(self, task: Task) -> Batch:
        """Append a task to the queue, unless it is there already; return its batch."""
        if len(task.positions) > self._slots.layout.rows:
            raise ValueError(f"a batch of {len(task.positions)} rows where there is room for {self._slots.layout.rows}")
        return self._queue.setdefault(_identity(task), Batch(Task(task.positions.copy(), task.keys.copy())))

    def request(self, task: Task) -> Batch:
        """Return the batch of a task. Batches queued before it are dropped; all are dropped if it is not queued."""
        if self._in_use is not None:
            self._drop(self._in_use)
            self._in_use = None
        while self._queue and (first := next(iter(self._queue))) != _identity(task):
            self._drop(self._queue.pop(first))
        return self.add(task)

    def chunks(self) -> Iterator[Chunk]:
        """Yield all chunks that can be rendered, earliest batch first; each then counts as given to a worker."""
        for batch in self._queue.values():
            if batch.slot is None:
                if None not in self._placed:
                    return
                self._place(batch, self._placed.index(None))
            while batch.waiting:
                batch.running += 1
                yield batch.waiting.pop(0)

    def complete(self, chunk: Chunk, reply: Reply | None) -> None:
        """Record the reply for a chunk; None means that it was not rendered and must be given out again."""
        batch = self._placed[chunk.slot]
        assert batch is not None
        batch.running -= 1
        if reply is not None:
            batch.replies[chunk.start] = reply
        elif not batch.dropped:
            batch.waiting.append(chunk)
        self._free_if_quiet(batch)

    def take(self, batch: Batch) -> Rendered:
        """Return a batch that is done, or raise its first failure; its pixels stay valid until the next `request`."""
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
            self._slots.wanted[batch.slot] = False  # workers skip its remaining rows
            self._free_if_quiet(batch)

    def _free_if_quiet(self, batch: Batch) -> None:
        if batch.dropped and not batch.running and batch.slot is not None:
            self._placed[batch.slot] = None


def _identity(task: Task) -> tuple[bytes, bytes]:
    return task.positions.tobytes(), task.keys.tobytes()
