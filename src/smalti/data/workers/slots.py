"""Memory that a renderer shares with its workers: a few batches, and what each worker is reading.

It has no name: its file is gone as soon as it is open, so that nothing stays behind however the processes end.
"""

import errno
import math
import os
import shutil
import tempfile
import time
from ctypes import Array, c_ubyte
from itertools import accumulate
from multiprocessing.sharedctypes import RawArray
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from smalti.core.errors import DataError

IDLE, STARTING = -1, -2
"""In the place of the image that a worker is reading."""

_LINE = 64
"""Bytes of a cache line."""


class Layout(NamedTuple):
    """How many batches of how many rows, the shapes of a row's arrays, and how many workers."""

    slots: int
    rows: int
    shapes: tuple[tuple[int, ...], ...]
    workers: int


class Slots:
    """The shared arrays; a worker that is sent this object sees the same memory.

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
        starts = list(accumulate((-(-size // _LINE) * _LINE for size in sizes), initial=0))
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
    try:
        # A file would be made larger than its disk without complaint, and writing to it would then kill this process.
        if max(shutil.disk_usage(folder).free for folder in _folders()) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return RawArray(c_ubyte, size)
    except OSError as error:
        raise DataError(
            f"cannot share {size / 2**20:.1f} MiB of images with data workers",
            cause=error.strerror or str(error),
            fix="use --num-workers 0 or a smaller batch",
        ) from error


def _folders() -> list[str]:
    """Where `RawArray` looks for room."""
    return [folder for folder in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(folder)]
