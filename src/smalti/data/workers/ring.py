"""Batches on their way: tasks in the order in which they will be asked for, in chunks, in slots that are used again."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from smalti.data.workers.jobs import Bad, Rendered, Task
from smalti.data.workers.slots import Slots
from smalti.data.workers.worker import Reply, Rows

_CHUNK = 8
"""Rows: enough that messages cost little, few enough that workers end together."""

_CHUNKS = 8
"""Of a batch for one worker at most; what waits in its pipe must fit there."""

_Identity: TypeAlias = tuple[bytes, bytes]


@dataclass
class Batch:
    """A task on its way.

    Attributes:
        slot: where it is rendered; None: not yet.
        waiting: chunks that nobody is working at.
        running: how many chunks somebody is working at.
        replies: what was said about those that are finished, by their first row.
        dropped: nobody waits for it any more.
    """

    task: Task
    slot: int | None = None
    waiting: list[Rows] = field(default_factory=list)
    running: int = 0
    replies: dict[int, Reply] = field(default_factory=dict)
    dropped: bool = False

    @property
    def done(self) -> bool:
        """Whether every row has been dealt with."""
        return self.slot is not None and not self.waiting and not self.running


class Chunk(NamedTuple):
    """Rows for one worker."""

    batch: Batch
    rows: Rows


class Ring:
    """Which batch is where in `slots`. A slot is used again only when nobody could still write to it."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._free = list(range(slots.layout.slots))
        self._queue: dict[_Identity, Batch] = {}
        self._in_use: Batch | None = None

    def add(self, task: Task) -> Batch:
        """Put a task at the end, unless it is known."""
        if len(task.positions) > self._slots.layout.rows:
            raise ValueError(f"a batch of {len(task.positions)} rows where there is room for {self._slots.layout.rows}")
        return self._queue.setdefault(_identity(task), Batch(Task(task.positions.copy(), task.keys.copy())))

    def turn_to(self, task: Task) -> Batch:
        """The batch of a task. What was to come before it is dropped, and all if it was not expected."""
        if self._in_use is not None:
            self._drop(self._in_use)
            self._in_use = None
        while self._queue and (first := next(iter(self._queue))) != _identity(task):
            self._drop(self._queue.pop(first))
        return self.add(task)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks that can be worked at, of the earliest batch first; they count as given out."""
        for batch in self._queue.values():
            if batch.slot is None:
                if not self._free:
                    return
                self._place(batch, self._free.pop())
            while batch.waiting:
                batch.running += 1
                yield Chunk(batch, batch.waiting.pop(0))

    def finished(self, chunk: Chunk, reply: Reply) -> None:
        """A chunk has been worked at."""
        chunk.batch.replies[chunk.rows.start] = reply
        self._returned(chunk.batch)

    def lost(self, chunk: Chunk) -> None:
        """A chunk has to be given out again."""
        if not chunk.batch.dropped:
            chunk.batch.waiting.append(chunk.rows)
        self._returned(chunk.batch)

    def take(self, batch: Batch) -> Rendered:
        """The pixels of a batch that is done; they stay until `turn_to`.

        Raises:
            DataError, RuntimeError: what was wrong with the first row that could not be rendered.
        """
        del self._queue[_identity(batch.task)]
        self._in_use = batch
        bad: list[Bad] = []
        for _, reply in sorted(batch.replies.items()):
            if reply.failure is not None:
                raise reply.failure
            bad += reply.bad
        rows = len(batch.task.positions)
        arrays = tuple(array[batch.slot, :rows] for array in self._slots.pixels)
        return Rendered(arrays, self._slots.shown[batch.slot, :rows].copy(), tuple(bad))

    def _place(self, batch: Batch, slot: int) -> None:
        rows, workers = len(batch.task.positions), self._slots.layout.workers
        self._slots.positions[slot, :rows], self._slots.keys[slot, :rows] = batch.task
        self._slots.wanted[slot] = True
        step = max(min(max(_CHUNK, -(-rows // (_CHUNKS * workers))), -(-rows // workers)), 1)
        batch.slot, batch.waiting = slot, [Rows(slot, at, min(at + step, rows)) for at in range(0, rows, step)]

    def _drop(self, batch: Batch) -> None:
        batch.dropped = True
        batch.waiting.clear()
        if batch.slot is not None:
            self._slots.wanted[batch.slot] = False  # workers skip what is left of it
            self._free_if_quiet(batch)

    def _returned(self, batch: Batch) -> None:
        batch.running -= 1
        self._free_if_quiet(batch)

    def _free_if_quiet(self, batch: Batch) -> None:
        if batch.dropped and not batch.running and batch.slot is not None:
            self._free.append(batch.slot)


def _identity(task: Task) -> _Identity:
    return task.positions.tobytes(), task.keys.tobytes()
