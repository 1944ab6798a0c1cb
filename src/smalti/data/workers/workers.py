"""Worker processes that render batches ahead of time. A batch survives whatever happens to them, bit by bit.

Chunks of the batches that are expected go to the worker with the least to do. A worker that dies or hangs is replaced
and its chunks are given out again; an image that it died of is never opened again.
"""

import os
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait

from smalti.data.workers.child import Child, end_all
from smalti.data.workers.deaths import Death, Deaths, death, hang
from smalti.data.workers.jobs import Bad, Job, Rendered, Task
from smalti.data.workers.ring import Chunk, Ring
from smalti.data.workers.slots import IDLE, STARTING, Layout, Slots

_DYING_TAKES = 5.0
"""Seconds at most, between the end of a worker's pipe and the news of how it ended."""


class Workers:
    """Renders on `num_workers` processes: a `Renderer`, with the results of `Inline`.

    Args:
        batch_size: rows of a task at most.
        num_workers: at least 1.
        ahead: batches that are rendered while one is in use.
        timeout: seconds after which reading an image counts as hung.
        quarantined: images that must not be opened.
        say: is told of workers that had to be replaced.

    Raises:
        DataError: no shared memory, or no processes. When called, also: workers keep dying; all are ended then.
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
        self._news: list[Bad] = []
        self._deaths = Deaths(num_workers)
        self._slots = Slots(Layout(ahead + 1, batch_size, job.shapes, num_workers))
        self._ring = Ring(self._slots)
        self._children: list[Child[Chunk]] = []
        self._end = weakref.finalize(self, _end_own, self._children, self._slots, os.getpid())
        try:
            for index in range(num_workers):
                self._children.append(self._child(index))
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int | None]:
        """The processes."""
        return [child.pid for child in self._children]

    def expect(self, tasks: Sequence[Task]) -> None:
        """As `Renderer` says. Tasks that are known already keep their place."""
        with self._whole_or_closed():
            for task in tasks:
                self._ring.add(task)
            self._give_out()

    def __call__(self, task: Task) -> Rendered:
        """As `Renderer` says. A task that was not expected makes all others forgotten."""
        with self._whole_or_closed():
            batch = self._ring.turn_to(task)
            self._give_out()
            while not batch.done:
                self._listen()
        rendered = self._ring.take(batch)
        news, self._news = self._news, []
        return rendered._replace(bad=(*news, *rendered.bad))

    def close(self) -> None:
        """End the processes; a second time does nothing."""
        self._end()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _whole_or_closed(self) -> Iterator[None]:
        """After an error halfway, or a Ctrl-C, nobody knows who is to do what."""
        if not self._end.alive:
            raise RuntimeError("these data workers are closed")
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _give_out(self) -> None:
        for chunk in self._ring.chunks():
            min(self._children, key=lambda child: len(child.given)).give(chunk.rows, chunk)

    def _listen(self) -> None:
        """Wait until something happens, and see to it."""
        patience = min(child.patience() for child in self._children)
        ready = wait([child.pipe for child in self._children], max(patience, 0))
        for child in self._children.copy():
            if child.pipe not in ready:
                if child.patience() <= 0:
                    self._replace(child, hung=True)
            elif answer := child.answer():
                self._ring.finished(*answer)
                self._deaths.success()
            else:
                self._replace(child)
        self._give_out()

    def _child(self, index: int) -> Child[Chunk]:
        return Child(self._job, self._slots, index, self._avoid, self._timeout)

    def _replace(self, child: Child[Chunk], hung: bool = False) -> None:
        """Bury a worker, begin another one, and take back what it had to do."""
        position = child.reading
        code = child.end(grace=0.0 if hung else _DYING_TAKES)
        child.close()
        self._judge(hang(position, self._timeout) if hung else death(position, code))
        self._children[child.index] = self._child(child.index)
        for chunk in child.given:
            self._ring.lost(chunk)

    def _judge(self, one: Death) -> None:
        """Say what happened to a worker; its image is not opened again where it is to blame."""
        guilty = self._deaths.count(one)
        doing = {IDLE: "waiting", STARTING: "starting"}.get(one.position) or f"reading {self._job.name(one.position)}"
        after = ", and that image is not opened again" if guilty else ""
        self._say(f"a data worker {one.how} while {doing}; it was started again{after}")
        if guilty and one.position not in self._avoid:
            self._avoid.add(one.position)
            self._news.append(Bad(one.position, one.reason, quarantined=True))
            for child in self._children:
                child.tell(one.position)


def _end_own(children: Sequence[Child[Chunk]], slots: Slots, owner: int) -> None:
    """Not in a process that was forked from the one that began them."""
    if os.getpid() == owner:
        end_all(children, slots)
