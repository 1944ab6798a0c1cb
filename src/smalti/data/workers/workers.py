"""Worker processes that render batches ahead of time. A batch is the same, bit by bit, whatever happens to them.

Chunks of the queued batches go to the worker with the fewest pending chunks. A worker that dies or hangs is replaced
and its chunks are sent out again; an image that killed it is never opened again.
"""

import os
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait

from smalti.core.errors import DataError
from smalti.data.workers.jobs import Bad, Job, Rendered, Renderer, Task
from smalti.data.workers.ring import IDLE, STARTING, Layout, Ring, Slots
from smalti.data.workers.worker import FEWER_WORKERS, WorkerExit, WorkerProcess

_MAX_KILLS = 2
"""SIGKILLs while reading an image until it is taken for their cause; a single one may mean that memory ran out."""

_CLOSE_TIMEOUT = 1.0
"""Seconds that all workers together have to exit before they are killed."""


class Workers(Renderer):
    """A `Renderer` that uses `num_workers` processes; its results are those of `InlineRenderer`.

    Tasks that are queued already keep their place; one that is requested and not queued drops all queued ones.

    Args:
        batch_size: the maximum number of rows of a task.
        ahead: the number of batches to prefetch while one is in use.
        timeout: seconds after which reading an image counts as hung.
        quarantined: indices of images that must not be opened.
        say: called with a message for each worker that had to be replaced.

    Raises:
        DataError: no shared memory, or no processes. When called, also if workers keep dying; all are ended then.
    """

    def __init__(
        self,
        job: Job,
        batch_size: int,
        num_workers: int,
        *,
        ahead: int = 2,
        timeout: float = 180.0,
        quarantined: Collection[int] = frozenset(),
        say: Callable[[str], None],
    ) -> None:
        self._job, self._timeout, self._say = job, timeout, say
        self._avoid = set(quarantined)
        self._new_bad: list[Bad] = []
        self._max_deaths = max(5, 2 * num_workers)
        self._deaths_in_a_row, self._kills = 0, dict[int, int]()
        self._slots = Slots(Layout(ahead + 1, batch_size, job.shapes, num_workers))
        self._ring = Ring(self._slots)
        self._children: list[WorkerProcess] = []
        self._end = weakref.finalize(self, _close_workers, self._children, self._slots, os.getpid())
        try:
            for index in range(num_workers):
                self._children.append(self._start_worker(index))
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        return [child.process.pid for child in self._children if child.process.pid is not None]

    def prefetch(self, tasks: Sequence[Task]) -> None:
        with self._close_on_error():
            for task in tasks:
                self._ring.add(task)
            self._dispatch()

    def __call__(self, task: Task) -> Rendered:
        with self._close_on_error():
            batch = self._ring.request(task)
            self._dispatch()
            while not batch.done:
                self._poll()
        rendered = self._ring.take(batch)
        new_bad, self._new_bad = self._new_bad, []
        return rendered._replace(bad=(*new_bad, *rendered.bad))

    def close(self) -> None:
        self._end()

    @contextmanager
    def _close_on_error(self) -> Iterator[None]:
        """Close on any error or Ctrl-C inside, as the state of queue and workers is then unknown."""
        if not self._end.alive:
            raise RuntimeError("these data workers are closed")
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _dispatch(self) -> None:
        for chunk in self._ring.chunks():
            min(self._children, key=lambda child: len(child.pending)).send_chunk(chunk)

    def _poll(self) -> None:
        """Wait until a worker replies, dies or hangs, and handle it."""
        timeout = min(child.seconds_to_timeout() for child in self._children)
        ready = wait([child.pipe for child in self._children], max(timeout, 0))
        for child in self._children.copy():
            if child.pipe not in ready:
                if child.seconds_to_timeout() <= 0:
                    self._replace(child, hung=True)
            elif answer := child.receive():
                self._ring.complete(*answer)
                self._deaths_in_a_row = 0
            else:
                self._replace(child, hung=False)
        self._dispatch()

    def _start_worker(self, index: int) -> WorkerProcess:
        return WorkerProcess(self._job, self._slots, index, self._avoid, self._timeout)

    def _replace(self, child: WorkerProcess, hung: bool) -> None:
        """End a dead or hung worker, start another one, and requeue its chunks."""
        self._handle_exit(child.reap(hung))
        self._children[child.index] = self._start_worker(child.index)
        for chunk in child.pending:
            self._ring.complete(chunk, None)

    def _handle_exit(self, one: WorkerExit) -> None:
        """Report the end of a worker; quarantine the image it was reading if that is the cause.

        Raises:
            DataError: workers keep dying: more than five in a row, and more than two a worker, between two successes.
        """
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > self._max_deaths:
            raise DataError("data workers keep dying", cause=f"the last one {one.how}", fix=FEWER_WORKERS)
        doing, at_fault = {IDLE: "waiting", STARTING: "starting"}.get(one.position, ""), False
        if not doing:
            doing = f"reading {self._job.name(one.position)}"
            self._kills[one.position] = self._kills.get(one.position, 0) + 1
            at_fault = one.certain or self._kills[one.position] >= _MAX_KILLS
        after = ", and that image is not opened again" if at_fault else ""
        self._say(f"a data worker {one.how} while {doing}; it was started again{after}")
        if at_fault and one.position not in self._avoid:
            self._avoid.add(one.position)
            self._new_bad.append(Bad(one.position, one.reason, quarantined=True))
            for child in self._children:
                child.avoid(one.position)


def _close_workers(children: Sequence[WorkerProcess], slots: Slots, owner: int) -> None:
    """Ask workers to exit, then kill them; does nothing in a process forked from the one that started them."""
    if os.getpid() != owner:
        return
    slots.wanted[:] = False
    for child in children:
        child.pipe.close()
    deadline = time.monotonic() + _CLOSE_TIMEOUT
    for child in children:
        child.end(max(deadline - time.monotonic(), 0.0))
