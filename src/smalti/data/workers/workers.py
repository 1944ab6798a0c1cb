"""Batches rendered ahead of time on a `DataLoader`. A batch survives whatever happens to its workers, bit by bit.

The loader's sampler yields chunks of the batches that are expected, and empty tickets where there are none. Where a
worker dies or hangs, all are ended and the loader begins anew with what is not done; an image that a worker died of is
never opened again.
"""

import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import NamedTuple, TypeAlias

import torch
from torch.utils.data import DataLoader

from smalti.core.errors import DataError
from smalti.data.workers.dataset import Reply, Rows, SlotDataset, same
from smalti.data.workers.deaths import FEWER, Death, Deaths, death, hang
from smalti.data.workers.jobs import Bad, Job, Rendered, Task
from smalti.data.workers.slots import IDLE, STARTING, Layout, Slots
from smalti.data.workers.starting import context, interrupts_held

_POLL = 0.1
"""Seconds between looks at workers that do not answer."""

_KILLING_TAKES, _STARTING_TAKES, _SECOND_LOOK = 5.0, 600.0, 1.0
_SERVER_DEAD = 255
_ATTEMPTS, _PAUSE = 4, 0.5
_CHUNK, _CHUNKS = 8, 8
_NOTHING = Rows(0, 0, 0)
_Identity: TypeAlias = tuple[bytes, bytes]


@dataclass(eq=False)
class _Batch:
    task: Task
    slot: int | None = None
    chunks: list[Rows] = field(default_factory=list)
    replies: dict[Rows, Reply] = field(default_factory=dict)
    dropped: bool = False

    @property
    def done(self) -> bool:
        return self.slot is not None and len(self.replies) == len(self.chunks)


class _Ticket(NamedTuple):
    batch: _Batch
    rows: Rows


class _Pool:
    """One loader and its processes, as long as all are well."""

    def __init__(self, dataset: SlotDataset, num_workers: int, prefetch: int, waiting: deque[_Ticket]) -> None:
        self.sent: deque[_Ticket | None] = deque()
        self.received = 0
        slots = dataset.slots
        slots.reading[:, 0] = STARTING
        slots.reading[:, 1] = time.monotonic_ns()

        def tickets() -> Iterator[Rows]:
            while True:
                self.sent.append(waiting.popleft() if waiting else None)
                ticket = self.sent[-1]
                yield ticket.rows if ticket else _NOTHING

        before = signal.getsignal(signal.SIGCHLD)
        loader = DataLoader(
            dataset, batch_size=None, sampler=tickets(), num_workers=num_workers, prefetch_factor=prefetch,
            collate_fn=same, timeout=_POLL, multiprocessing_context=context(), worker_init_fn=dataset.settle_in,
            generator=torch.Generator(),
        )
        with interrupts_held():
            self.iterator = iter(loader)
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGCHLD, before)  # torch's raises wherever the main thread is
        self.processes: list[BaseProcess] = self.iterator._workers  # type: ignore[attr-defined]

    def end(self) -> None:
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
        for process in self.processes:
            process.join(_KILLING_TAKES)
        with suppress(RuntimeError, AssertionError):
            self.iterator._shutdown_workers()  # type: ignore[attr-defined]


class Workers:
    """Renders on `num_workers` processes: a `Renderer`, with the results of `Inline`."""

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
        self._job, self._timeout, self._say, self._num_workers = job, timeout, say, num_workers
        self._batch_size = batch_size
        self._prefetch = max(2, -(-(ahead + 1) * -(-batch_size // self._step(batch_size)) // num_workers))
        self._avoid = set(quarantined)
        self._news: list[Bad] = []
        self._deaths = Deaths(num_workers)
        self._slots = Slots(Layout(ahead + 1, batch_size, job.shapes, num_workers))
        self._free = list(range(ahead + 1))
        self._queue: dict[_Identity, _Batch] = {}
        self._in_use: _Batch | None = None
        self._waiting: deque[_Ticket] = deque()
        self._suspicion = (0.0, 0.0)
        self._pools: list[_Pool] = []
        self._end = weakref.finalize(self, _end_own, self._pools, os.getpid())

    @property
    def pids(self) -> list[int | None]:
        """The processes."""
        return [process.pid for pool in self._pools for process in pool.processes]

    def expect(self, tasks: Sequence[Task]) -> None:
        """As `Renderer` says. Tasks that are known already keep their place."""
        with self._whole_or_closed():
            for task in tasks:
                self._add(task)
            self._place()
            if not self._pools:
                self._begin()
            while self._waiting and self._pools[0].sent[0] is None:
                self._receive()

    def __call__(self, task: Task) -> Rendered:
        """As `Renderer` says. A task that was not expected makes all others forgotten."""
        with self._whole_or_closed():
            batch = self._turn_to(task)
            self._place()
            if not self._pools:
                self._begin()
            while not batch.done:
                self._receive()
                self._place()
        return self._take(batch)

    def close(self) -> None:
        """End the processes; a second time does nothing."""
        self._end()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _whole_or_closed(self) -> Iterator[None]:
        if not self._end.alive:
            raise RuntimeError("these data workers are closed")
        try:
            yield
        except BaseException:
            self.close()
            raise

    # the ring

    def _step(self, rows: int) -> int:
        workers = self._num_workers
        return max(min(max(_CHUNK, -(-rows // (_CHUNKS * workers))), -(-rows // workers)), 1)

    def _add(self, task: Task) -> _Batch:
        if len(task.positions) > self._batch_size:
            raise ValueError(f"a batch of {len(task.positions)} rows where there is room for {self._batch_size}")
        return self._queue.setdefault(_identity(task), _Batch(Task(task.positions.copy(), task.keys.copy())))

    def _turn_to(self, task: Task) -> _Batch:
        if self._in_use is not None:
            self._drop(self._in_use)
            self._in_use = None
        while self._queue and (first := next(iter(self._queue))) != _identity(task):
            self._drop(self._queue.pop(first))
        return self._add(task)

    def _drop(self, batch: _Batch) -> None:
        batch.dropped = True
        self._waiting = deque()  if False else self._waiting
        kept = [ticket for ticket in self._waiting if ticket.batch is not batch]
        gone = len(self._waiting) - len(kept)
        self._waiting.clear()
        self._waiting.extend(kept)
        if batch.slot is not None:
            self._slots.wanted[batch.slot] = False
            for rows in batch.chunks[len(batch.chunks) - gone :]:
                batch.replies[rows] = Reply([], None)
            self._free_if_quiet(batch)

    def _free_if_quiet(self, batch: _Batch) -> None:
        if batch.dropped and batch.slot is not None and batch.done:
            self._free.append(batch.slot)
            batch.slot = None

    def _place(self) -> None:
        for batch in self._queue.values():
            if batch.slot is None:
                if not self._free:
                    return
                slot, rows = self._free.pop(), len(batch.task.positions)
                self._slots.positions[slot, :rows], self._slots.keys[slot, :rows] = batch.task
                self._slots.wanted[slot] = True
                step = self._step(rows)
                batch.slot = slot
                batch.chunks = [Rows(slot, at, min(at + step, rows)) for at in range(0, rows, step)]
                self._waiting.extend(_Ticket(batch, chunk) for chunk in batch.chunks)

    def _take(self, batch: _Batch) -> Rendered:
        del self._queue[_identity(batch.task)]
        self._in_use = batch
        bad: list[Bad] = []
        for chunk in batch.chunks:
            reply = batch.replies[chunk]
            if reply.failure is not None:
                raise reply.failure
            bad += reply.bad
        rows = len(batch.task.positions)
        news, self._news = self._news, []
        arrays = tuple(array[batch.slot, :rows] for array in self._slots.pixels)
        return Rendered(arrays, self._slots.shown[batch.slot, :rows].copy(), (*news, *bad))

    # the processes

    def _begin(self) -> None:
        dataset = SlotDataset(self._job, self._slots, frozenset(self._avoid))
        for attempt in range(_ATTEMPTS):
            try:
                self._pools.append(_Pool(dataset, self._num_workers, self._prefetch, self._waiting))
                return
            except (OSError, EOFError) as error:
                if attempt == _ATTEMPTS - 1:
                    raise DataError("cannot start a data worker", cause=str(error), fix=FEWER) from error
                time.sleep(_PAUSE)

    def _receive(self) -> None:
        """The next reply, or a new loader."""
        pool, began = self._pools[0], time.monotonic()
        while True:
            try:
                reply = next(pool.iterator)
                break
            except RuntimeError as error:
                told = str(error)
            ends = self._ends(pool, began)
            if ends:
                return self._rebuild(ends)
            if "timed out" not in told:
                raise RuntimeError(told)
        pool.received += 1
        ticket = pool.sent.popleft()
        if ticket is not None:
            self._deaths.success()
            ticket.batch.replies[ticket.rows] = reply
            self._free_if_quiet(ticket.batch)

    def _ends(self, pool: _Pool, began: float) -> list[Death]:
        """Of workers that have died, or of the one that is waited for and hangs."""
        found = []
        for worker, process in enumerate(pool.processes):
            if process.exitcode is not None:
                code = None if process.exitcode == _SERVER_DEAD else process.exitcode
                found.append(death(int(self._slots.reading[worker, 0]), code))
        if not found and self._hangs(pool, began):
            found.append(hang(int(self._slots.reading[pool.received % self._num_workers, 0]), self._timeout))
        return found

    def _hangs(self, pool: _Pool, began: float) -> bool:
        position, stamp = self._slots.reading[pool.received % self._num_workers]
        since = stamp / 1e9 if position >= 0 else max(stamp / 1e9, began)
        limit = max(self._timeout, _STARTING_TAKES) if position == STARTING else self._timeout
        now = time.monotonic()
        if now < since + limit:
            return False
        if self._suspicion[0] != since:
            self._suspicion = (since, now + _SECOND_LOOK)
        return bool(self._suspicion[1] <= now)

    def _rebuild(self, ends: Sequence[Death]) -> None:
        self._pools.pop().end()
        for one in ends:
            self._judge(one)
        self._waiting.clear()
        used = {batch.slot for batch in (*self._queue.values(), self._in_use) if batch is not None}
        self._free = [slot for slot in range(self._slots.layout.slots) if slot not in used]
        for batch in self._queue.values():
            self._waiting.extend(_Ticket(batch, rows) for rows in batch.chunks if rows not in batch.replies)
        self._begin()

    def _judge(self, one: Death) -> None:
        guilty = self._deaths.count(one)
        doing = {IDLE: "waiting", STARTING: "starting"}.get(one.position) or f"reading {self._job.name(one.position)}"
        after = ", and that image is not opened again" if guilty else ""
        self._say(f"a data worker {one.how} while {doing}; it was started again{after}")
        if guilty and one.position not in self._avoid:
            self._avoid.add(one.position)
            self._news.append(Bad(one.position, one.reason, quarantined=True))


def _end_own(pools: Sequence[_Pool], owner: int) -> None:
    """Not in a process that was forked from the one that began them."""
    if os.getpid() == owner:
        for pool in pools:
            pool.end()


def _identity(task: Task) -> _Identity:
    return task.positions.tobytes(), task.keys.tobytes()
