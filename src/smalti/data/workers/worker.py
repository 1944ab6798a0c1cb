"""The code that runs in a worker process, and `WorkerProcess`, with which its parent starts, monitors and ends it."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Collection, Iterator
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from smalti.core.compute import keep_freed_memory
from smalti.core.errors import DataError
from smalti.data.workers.jobs import Bad, Job, render_row
from smalti.data.workers.ring import IDLE, STARTING, Chunk, Reply, Slots

FEWER_WORKERS = "use fewer --num-workers, a smaller batch, or --num-workers 0"
_PRELOAD = ("smalti.data.workers.worker", "smalti.data.transforms.augment")
"""Modules that the fork server imports once for all workers; one that cannot be imported there is left to them."""

_START_TIMEOUT = 600.0
"""Seconds that a start may take, as when Python and torch are loaded over a slow network."""

_ATTEMPTS, _PAUSE = 4, 0.5
"""Attempts at starting a process, and the seconds between them."""

_EXIT_TIMEOUT = 5.0
"""Seconds at most between the end of a worker's pipe and its exit code."""

_KILL_TIMEOUT = 5.0
"""Seconds to wait at most. A killed process that is blocked on a dead disk ends later, without running again."""

_FORKSERVER_EXIT = 255
"""The exit code that multiprocessing reports if the fork server, which knows the real one, was killed as well."""

_HANG_CONFIRMATION = 1.0
"""Seconds until a hang is confirmed: after Ctrl-Z and fg or a pause, a worker that was not scheduled looks hung."""

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


def work(pipe: Connection, job: Job, slots: Slots, worker: int, avoid: Collection[int]) -> None:
    """Process messages from the pipe until the parent closes it or ends, and send a `Reply` for each chunk.

    A message is a chunk to render, or the index of an image that must not be opened any more, as those of `avoid`.
    """
    _init_worker()
    avoid = set(avoid)
    slots.publish(worker, IDLE)
    with contextlib.suppress(EOFError, OSError):  # the parent has closed the pipe
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


def _init_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    warnings.simplefilter("ignore")
    with contextlib.suppress(OSError):  # standard output is reserved for results
        os.dup2(2, 1)
    with contextlib.suppress(OSError):  # when memory runs out, Linux should kill a worker, which can be replaced
        Path("/proc/self/oom_score_adj").write_text("500")
    keep_freed_memory()
    if "torch" in sys.modules:  # imported with the job
        sys.modules["torch"].set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent ends; a worker that hangs would not notice that its pipe was closed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class WorkerExit(NamedTuple):
    """The end of a worker.

    Attributes:
        position: the index of the image it was reading, or `IDLE` or `STARTING`.
        how: how it ended, to follow "a data worker" in a message.
        reason: if the image is the cause, why it is not opened again.
        certain: whether one such death is enough to take the image for the cause.
    """

    position: int
    how: str
    reason: str
    certain: bool


class WorkerProcess:
    """One worker process, as seen by its parent.

    Args:
        avoid: indices of images that must not be opened.
        timeout: seconds after which reading an image counts as hung.

    Attributes:
        pending: chunks it was sent and has not answered yet, oldest first; it answers in this order.

    Raises:
        DataError: no process can be started.
    """

    def __init__(self, job: Job, slots: Slots, index: int, avoid: Collection[int], timeout: float) -> None:
        self.index, self._slots, self._timeout = index, slots, timeout
        self.pending: deque[Chunk] = deque()
        self._heard = time.monotonic()
        self._suspected_hang = (0.0, 0.0)
        slots.publish(index, STARTING)
        for attempt in range(_ATTEMPTS):
            try:
                self.process, self.pipe = _begin(job, slots, index, frozenset(avoid))
                break
            except (OSError, EOFError) as error:  # the fork server may have been killed too; it is restarted
                if attempt == _ATTEMPTS - 1:
                    raise DataError("cannot start a data worker", cause=str(error), fix=FEWER_WORKERS) from error
                time.sleep(_PAUSE)

    @property
    def reading(self) -> int:
        """The index of the image it is reading, or `IDLE` or `STARTING`; still valid after its death."""
        return int(self._slots.reading[self.index, 0])

    def avoid(self, position: int) -> None:
        self._send(position)

    def send_chunk(self, chunk: Chunk) -> None:
        if not self.pending:
            self._heard = time.monotonic()
        self.pending.append(chunk)
        self._send(chunk)

    def receive(self) -> tuple[Chunk, Reply] | None:
        """Wait for the next reply; None if the worker is dead."""
        try:
            reply: Reply = self.pipe.recv()
        except (EOFError, OSError):
            return None
        self._heard = time.monotonic()
        return self.pending.popleft(), reply

    def seconds_to_timeout(self) -> float:
        """Seconds until it should be checked again; 0 or less means that it hangs, as two checks have found."""
        if not self.pending:
            return self._timeout
        now, since = time.monotonic(), max(self._slots.reading[self.index, 1].item() / 1e9, self._heard)
        limit = max(self._timeout, _START_TIMEOUT) if self.reading == STARTING else self._timeout
        if now < since + limit:
            return since + limit - now
        if self._suspected_hang[0] != since:
            self._suspected_hang = (since, now + _HANG_CONFIRMATION)
        return self._suspected_hang[1] - now

    def reap(self, hung: bool) -> WorkerExit:
        """End the worker, so that it writes to no slot any more; kill it if it is `hung`. Raises as `describe_exit`."""
        position, seconds = self.reading, self._timeout
        code = self.end(0.0 if hung else _EXIT_TIMEOUT)
        self.pipe.close()
        if hung:
            return WorkerExit(position, f"gave no answer in {seconds:g} s", f"no answer in {seconds:g} s", certain=True)
        return describe_exit(position, None if code == _FORKSERVER_EXIT else code)

    def end(self, grace: float) -> int | None:
        """Wait `grace` seconds for it to end, then kill it; return its exit code, negative for a signal."""
        self.process.join(grace)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join(_KILL_TIMEOUT)
        return self.process.exitcode

    def _send(self, order: Chunk | int) -> None:
        """Send a message; errors are ignored, since `receive` finds out whether the worker is dead."""
        with contextlib.suppress(OSError):
            self.pipe.send(order)


def describe_exit(position: int, code: int | None) -> WorkerExit:
    """Describe the end of a worker that was not ended by its parent.

    Args:
        position: the index of the image it was reading, or `IDLE` or `STARTING`.
        code: the exit code of the process, negative for a signal; None if unknown.

    Raises:
        DataError: it failed during startup; so will all others.
    """
    if position == STARTING and code is not None and code >= 0:
        raise DataError(
            "data workers cannot start",
            cause=f"they end with exit code {code}; the reason is in the output above",
            fix="a script that trains needs `if __name__ == '__main__':`; or use --num-workers 0",
        )
    if code is None:
        return WorkerExit(position, "was killed", "killed its reader", certain=False)
    if code >= 0:
        return WorkerExit(position, f"ended (exit code {code})", f"ended its reader (exit code {code})", certain=True)
    told = f"signal {-code}; out of memory?" if code == -signal.SIGKILL else f"signal {-code}"
    return WorkerExit(
        position, f"was killed ({told})", f"killed its reader (signal {-code})", certain=-code in _CRASHES
    )


def _begin(job: Job, slots: Slots, index: int, avoid: Collection[int]) -> tuple[BaseProcess, Connection]:
    """Start a worker; return its process and the parent's end of its pipe."""
    with _signals_blocked():
        context = _context()
        here, there = context.Pipe()
        with there:
            arguments = (there, job, slots, index, avoid)
            process = context.Process(target=work, args=arguments, name="smalti data worker", daemon=True)
            process.start()
    return process, here


def _context() -> ForkServerContext | SpawnContext:
    """On Linux, fork from a server with torch loaded and no threads; elsewhere spawn, as forking is not safe."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGUSR1 for processes started in this context, also before they can ignore them themselves.

    SIGINT is sent by Ctrl-C. SIGUSR1 asks the parent for a checkpoint, and some send it to all processes of a job.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGUSR1])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
