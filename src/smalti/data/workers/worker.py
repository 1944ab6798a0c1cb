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
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from smalti.core.allocator import keep_freed_memory
from smalti.core.errors import DataError
from smalti.data.workers.jobs import Bad, Job, render_row
from smalti.data.workers.ring import IDLE, Chunk, Reply, Slots


def work(pipe: Connection, job: Job, slots: Slots, worker: int, avoid: Collection[int]) -> None:
    """Do what comes through the pipe, until the parent closes it or is gone.

    That is chunks to render and numbers of images that must not be opened any more.
    """
    _settle_in()
    avoid = set(avoid)
    slots.publish(worker, IDLE)
    with contextlib.suppress(EOFError, OSError):  # the parent does not listen any more
        while True:
            order: Chunk | int = pipe.recv()
            if isinstance(order, int):
                avoid.add(order)
            else:
                reply = _render(order, job, slots, worker, avoid)
                slots.publish(worker, IDLE)
                pipe.send(reply)


def _render(chunk: Chunk, job: Job, slots: Slots, worker: int, avoid: Collection[int]) -> Reply:
    slot, start, stop = chunk
    bad: list[Bad] = []
    for row in range(start, stop):
        if not slots.wanted[slot]:
            break
        position, key = int(slots.positions[slot, row]), int(slots.keys[slot, row])
        out = [array[slot, row] for array in slots.pixels]
        try:
            shown, found = render_row(job, position, key, out, avoid, partial(slots.publish, worker))
        except DataError as error:
            return Reply(bad, error)
        except Exception as error:
            return Reply(bad, RuntimeError(f"{error}\n\n{traceback.format_exc()}"))
        slots.shown[slot, row] = shown
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
