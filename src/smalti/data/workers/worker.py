"""A worker process: what runs in it, and as its parent sees it, begun, listened to, found dead or hung, ended."""

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

FEWER = "use fewer --num-workers, a smaller batch, or --num-workers 0"
_PRELOAD = ("smalti.data.workers.worker", "smalti.data.transforms.augment")
"""Imported once, by the server that workers are forked from; what cannot be imported is left to the workers."""

_STARTING_TAKES = 600.0
"""Seconds at most, where Python and torch come over a slow network."""

_ATTEMPTS, _PAUSE = 4, 0.5
"""At starting a process, and seconds between them."""

_DYING_TAKES = 5.0
"""Seconds at most, between the end of a worker's pipe and the news of how it ended."""

_KILLING_TAKES = 5.0
"""Seconds at most. A process that waits for a dead disk ends later, without running again."""

_SERVER_DEAD = 255
"""The exit code that multiprocessing reports where the server that could tell was killed as well."""

_SECOND_LOOK = 1.0
"""Seconds. After a Ctrl-Z and fg, or when training paused, a worker seems to hang that only was not scheduled."""

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


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


class Death(NamedTuple):
    """The end of a worker.

    Attributes:
        position: the image it was reading, or `IDLE` or `STARTING`.
        how: what it did, to stand after "a data worker".
        reason: why the image, if it is to blame, is not opened again.
        certain: whether it is to blame at once.
    """

    position: int
    how: str
    reason: str
    certain: bool


class Child:
    """One worker.

    Attributes:
        given: what it was given and has not answered yet, oldest first; it answers in this order.

    Raises:
        DataError: no process can be started.
    """

    def __init__(self, job: Job, slots: Slots, index: int, avoid: Collection[int], timeout: float) -> None:
        self.index, self._slots, self._timeout = index, slots, timeout
        self.given: deque[Chunk] = deque()
        self._heard = time.monotonic()
        self._suspicion = (0.0, 0.0)
        slots.publish(index, STARTING)
        for attempt in range(_ATTEMPTS):
            try:
                self.process, self.pipe = _begin(job, slots, index, frozenset(avoid))
                break
            except (OSError, EOFError) as error:  # the server may have been killed as well; it is begun anew
                if attempt == _ATTEMPTS - 1:
                    raise DataError("cannot start a data worker", cause=str(error), fix=FEWER) from error
                time.sleep(_PAUSE)

    @property
    def reading(self) -> int:
        """The image that it is reading, or `IDLE` or `STARTING`; also after its death."""
        return int(self._slots.reading[self.index, 0])

    def avoid(self, position: int) -> None:
        """Have it never open an image any more."""
        self._tell(position)

    def give(self, chunk: Chunk) -> None:
        """Have it render a chunk."""
        if not self.given:
            self._heard = time.monotonic()
        self.given.append(chunk)
        self._tell(chunk)

    def answer(self) -> tuple[Chunk, Reply] | None:
        """Wait for the next answer; None: it is dead."""
        try:
            reply: Reply = self.pipe.recv()
        except (EOFError, OSError):
            return None
        self._heard = time.monotonic()
        return self.given.popleft(), reply

    def patience(self) -> float:
        """Seconds after which it should be looked at again. Not above 0: it hangs, as two looks say."""
        if not self.given:
            return self._timeout
        now, since = time.monotonic(), max(self._slots.reading[self.index, 1].item() / 1e9, self._heard)
        limit = max(self._timeout, _STARTING_TAKES) if self.reading == STARTING else self._timeout
        if now < since + limit:
            return since + limit - now
        if self._suspicion[0] != since:
            self._suspicion = (since, now + _SECOND_LOOK)
        return self._suspicion[1] - now

    def bury(self, hung: bool) -> Death:
        """See to its end, after which it writes to no slot; `hung` says whether it has to be made.

        Raises:
            DataError: it failed before it could do anything; so will all others.
        """
        position, seconds = self.reading, self._timeout
        code = self.end(0.0 if hung else _DYING_TAKES)
        self.pipe.close()
        if hung:
            return Death(position, f"gave no answer in {seconds:g} s", f"no answer in {seconds:g} s", certain=True)
        return death(position, None if code == _SERVER_DEAD else code)

    def end(self, grace: float) -> int | None:
        """Wait for its end, or make one; its exit code, negative for a signal."""
        self.process.join(grace)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join(_KILLING_TAKES)
        return self.process.exitcode

    def _tell(self, order: Chunk | int) -> None:
        """Whether it is dead shows when it is listened to."""
        with contextlib.suppress(OSError):
            self.pipe.send(order)


def death(position: int, code: int | None) -> Death:
    """The end of a worker by itself.

    Args:
        code: how the process ended, negative for a signal; None: not known.

    Raises:
        DataError: it failed before it could do anything; so will all others.
    """
    if position == STARTING and code is not None and code >= 0:
        raise DataError(
            "data workers cannot start",
            cause=f"they end with exit code {code}; the reason is in the output above",
            fix="a script that trains needs `if __name__ == '__main__':`; or use --num-workers 0",
        )
    if code is None:
        return Death(position, "was killed", "killed its reader", certain=False)
    if code >= 0:
        return Death(position, f"ended (exit code {code})", f"ended its reader (exit code {code})", certain=True)
    told = f"signal {-code}; out of memory?" if code == -signal.SIGKILL else f"signal {-code}"
    return Death(position, f"was killed ({told})", f"killed its reader (signal {-code})", certain=-code in _CRASHES)


def _begin(job: Job, slots: Slots, index: int, avoid: Collection[int]) -> tuple[BaseProcess, Connection]:
    """A worker, and this end of its pipe."""
    with _signals_held():
        context = _context()
        here, there = context.Pipe()
        with there:
            arguments = (there, job, slots, index, avoid)
            process = context.Process(target=work, args=arguments, name="smalti data worker", daemon=True)
            process.start()
    return process, here


def _context() -> ForkServerContext | SpawnContext:
    """Linux forks from a server that has torch and no threads; elsewhere, forking is not safe."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """A process that is started meanwhile never sees Ctrl-C, not even before it could say that it ignores it.

    Nor SIGUSR1, which asks the parent for a checkpoint, and which some send to all processes of a job.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGUSR1])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
