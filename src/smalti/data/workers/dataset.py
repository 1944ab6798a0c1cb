"""What runs in a worker process of a `DataLoader`: the pixels of a chunk of a batch go into shared memory."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Dataset, get_worker_info

from smalti.core.errors import DataError
from smalti.core.memory import keep_freed_memory
from smalti.data.workers.jobs import Bad, Job, render_row
from smalti.data.workers.slots import IDLE, Slots


class Rows(NamedTuple):
    """A chunk of the batch in a slot, `start` to `stop`."""

    slot: int
    start: int
    stop: int


class Reply(NamedTuple):
    """What a worker says about rows when they are done. A failure is an error of the kinds of `render_row`."""

    bad: list[Bad]
    failure: DataError | RuntimeError | None


class SlotDataset(Dataset[Reply]):
    """Its items are replies about rows; the pixels are written into `slots`."""

    def __init__(self, job: Job, slots: Slots, avoid: frozenset[int]) -> None:
        self.job, self.slots, self.avoid = job, slots, avoid

    def __getitem__(self, rows: Rows) -> Reply:
        worker = _worker()
        reply = self._render(rows, worker)
        self.slots.publish(worker, IDLE)
        return reply

    def _render(self, rows: Rows, worker: int) -> Reply:
        (slot, start, stop), slots = rows, self.slots
        positions, keys = slots.positions[slot, start:stop].tolist(), slots.keys[slot, start:stop].tolist()
        pixels = [array[slot] for array in slots.pixels]
        bad: list[Bad] = []
        for row, (position, key) in enumerate(zip(positions, keys, strict=True), start):
            if not slots.wanted[slot]:
                break
            try:
                slots.shown[slot, row], found = render_row(
                    self.job, position, key, [one[row] for one in pixels], self.avoid,
                    lambda image: slots.publish(worker, image),
                )
            except DataError as error:
                return Reply(bad, error)
            except Exception as error:
                return Reply(bad, RuntimeError(f"{error}\n\n{traceback.format_exc()}"))
            bad += found
        return Reply(bad, None)

    def settle_in(self, worker: int) -> None:
        """Begin a worker process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
        warnings.simplefilter("ignore")
        with contextlib.suppress(OSError):  # standard output is for results
            os.dup2(2, 1)
        with contextlib.suppress(OSError):  # where memory runs out, Linux shall take a worker, which can be replaced
            Path("/proc/self/oom_score_adj").write_text("500")
        keep_freed_memory()
        threading.Thread(target=_end_with_parent, daemon=True).start()
        self.slots.publish(worker, IDLE)


def _worker() -> int:
    info = get_worker_info()
    assert info is not None
    return info.id


def same(reply: Reply) -> Reply:
    """No collation."""
    return reply


def _end_with_parent() -> None:
    """A worker that hangs does not look whether its parent is there."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
