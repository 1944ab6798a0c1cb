"""What runs in a worker process: chunks of batches come through a pipe, pixels go into shared memory."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Collection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeAlias

from smalti.core.errors import DataError
from smalti.core.memory import keep_freed_memory
from smalti.data.workers.jobs import Bad, Job, render_row
from smalti.data.workers.slots import IDLE, Slots


class Rows(NamedTuple):
    """A chunk of the batch in a slot, `start` to `stop`."""

    slot: int
    start: int
    stop: int


Order: TypeAlias = Rows | int
"""What a worker is told: rows to render, or an image that must not be opened any more."""


class Reply(NamedTuple):
    """What a worker says about rows when they are done. A failure is an error of the kinds of `render_row`."""

    bad: list[Bad]
    failure: DataError | RuntimeError | None


def work(pipe: Connection, job: Job, slots: Slots, worker: int, avoid: Collection[int]) -> None:
    """Render until the parent closes the pipe or is gone."""
    _settle_in()
    avoid = set(avoid)
    slots.publish(worker, IDLE)
    with contextlib.suppress(EOFError, OSError):  # the parent does not listen any more
        while True:
            order: Order = pipe.recv()
            if isinstance(order, int):
                avoid.add(order)
            else:
                reply = _render(order, job, slots, worker, avoid)
                slots.publish(worker, IDLE)
                pipe.send(reply)


def _render(rows: Rows, job: Job, slots: Slots, worker: int, avoid: Collection[int]) -> Reply:
    slot, start, stop = rows
    positions, keys = slots.positions[slot, start:stop].tolist(), slots.keys[slot, start:stop].tolist()
    pixels = [array[slot] for array in slots.pixels]
    bad: list[Bad] = []

    def opening(position: int) -> None:
        slots.publish(worker, position)

    for row, (position, key) in enumerate(zip(positions, keys, strict=True), start):
        if not slots.wanted[slot]:
            break
        try:
            slots.shown[slot, row], found = render_row(job, position, key, [one[row] for one in pixels], avoid, opening)
        except DataError as error:
            return Reply(bad, error)
        except Exception as error:
            return Reply(bad, RuntimeError(f"{error}\n\n{traceback.format_exc()}"))
        bad += found
    return Reply(bad, None)


def _settle_in() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    warnings.simplefilter("ignore")
    with contextlib.suppress(OSError):  # standard output is for results
        os.dup2(2, 1)
    with contextlib.suppress(OSError):  # where memory runs out, Linux shall take a worker, which can be replaced
        Path("/proc/self/oom_score_adj").write_text("500")
    keep_freed_memory()
    if "torch" in sys.modules:  # the job has brought it
        sys.modules["torch"].set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker that hangs does not notice that its pipe was closed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
