"""A worker process as its parent sees it: begun, listened to, found dead or hung, ended."""

import contextlib
import multiprocessing
import signal
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

from smalti.core.errors import DataError
from smalti.data.workers.deaths import FEWER
from smalti.data.workers.jobs import Job
from smalti.data.workers.slots import STARTING, Slots
from smalti.data.workers.worker import Order, Reply, work

T = TypeVar("T")

_PRELOAD = ("smalti.data.workers.worker", "smalti.data.render")
"""Imported once, by the server that workers are forked from; what cannot be imported is left to the workers."""

_STARTING_TAKES = 600.0
"""Seconds at most, where Python and torch come over a slow network."""

_ATTEMPTS, _PAUSE = 4, 0.5
"""At starting a process, and seconds between them."""

_KILLING_TAKES = 5.0
"""Seconds at most. A process that waits for a dead disk ends later, without running again."""

_SERVER_DEAD = 255
"""The exit code that multiprocessing reports where the server that could tell was killed as well."""

_SECOND_LOOK = 1.0
"""Seconds. After a Ctrl-Z and fg, or when training paused, a worker seems to hang that only was not scheduled."""


class Child(Generic[T]):
    """One worker.

    Attributes:
        given: what it was given and has not answered yet, oldest first; it answers in this order.

    Raises:
        DataError: no process can be started.
    """

    def __init__(self, job: Job, slots: Slots, index: int, avoid: Collection[int], timeout: float) -> None:
        self.index, self._slots, self._timeout = index, slots, timeout
        self.given: deque[T] = deque()
        self._heard = time.monotonic()
        self._suspicion = (0.0, 0.0)
        slots.publish(index, STARTING)
        arguments = (job, slots, index, frozenset(avoid))
        for attempt in range(_ATTEMPTS):
            try:
                self._process, self.pipe = _begin(arguments)
                break
            except (OSError, EOFError) as error:  # the server may have been killed as well; it is begun anew
                if attempt == _ATTEMPTS - 1:
                    raise DataError("cannot start a data worker", cause=str(error), fix=FEWER) from error
                time.sleep(_PAUSE)

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    @property
    def reading(self) -> int:
        """The image that it is reading, or `IDLE` or `STARTING`; also after its death."""
        return int(self._slots.reading[self.index, 0])

    def tell(self, order: Order) -> None:
        """Send an order; whether it is dead shows when it is listened to."""
        with contextlib.suppress(OSError):
            self.pipe.send(order)

    def give(self, order: Order, item: T) -> None:
        """Send an order that will be answered."""
        if not self.given:
            self._heard = time.monotonic()
        self.given.append(item)
        self.tell(order)

    def answer(self) -> tuple[T, Reply] | None:
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

    def close(self) -> None:
        """Tell it to end."""
        self.pipe.close()

    def end(self, grace: float) -> int | None:
        """Wait for its end, or make one; after that it writes to no slot.

        Returns:
            Its exit code, negative for a signal; None: that is not known.
        """
        self._process.join(grace)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(_KILLING_TAKES)
        code = self._process.exitcode
        return None if code == _SERVER_DEAD else code


def end_all(children: Sequence[Child[T]], slots: Slots, grace: float = 1.0) -> None:
    """End workers: by asking, then by force."""
    slots.wanted[:] = False
    for child in children:
        child.close()
    deadline = time.monotonic() + grace
    for child in children:
        child.end(max(deadline - time.monotonic(), 0.0))


def _begin(arguments: tuple[Job, Slots, int, Collection[int]]) -> tuple[BaseProcess, Connection]:
    """A worker, and this end of its pipe."""
    context = _context()
    here, there = context.Pipe()
    with there:
        process = context.Process(target=work, args=(there, *arguments), name="smalti data worker", daemon=True)
        with _interrupts_held(sys.platform != "linux"):
            process.start()
    return process, here


def _context() -> ForkServerContext | SpawnContext:
    """Linux forks from a server that has torch and no threads; elsewhere, forking is not safe."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    with _interrupts_held():
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _interrupts_held(really: bool = True) -> Iterator[None]:
    """A process that is started meanwhile never sees Ctrl-C, not even before it could say that it ignores it.

    Nor SIGUSR1, which asks the parent for a checkpoint, and which some send to all processes of a job.
    """
    if not really or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGUSR1])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
