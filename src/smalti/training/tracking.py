"""Metrics and pictures of a run, sent to an experiment tracker besides metrics.jsonl.

Everything that a tracker does happens on one thread of its own. Training waits for it at the end only, and not for
long; a tracker that fails or is too slow is reported once, and metrics.jsonl is complete without it.
"""

import queue
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from jaxtyping import UInt8

from smalti.core.errors import OutputError
from smalti.core.files import write_json
from smalti.core.log import Log, printable
from smalti.core.stored import read_object

STATE = "tracking.json"
"""In the run folder: under which id the tracker knows the run, and up to which step it has been told."""
_MAX_WAITING = 1000
"""Steps that may wait for a slow tracker; more are left out."""
_END, _END_STOPPED = 60.0, 10.0
"""Seconds that a tracker has for what it has not sent, at the end of a run, and of one that is stopped by a signal."""

Picture = UInt8[np.ndarray, "_H _W 3"]


class Tracker(Protocol):
    """An experiment tracker, as TensorBoard or Weights & Biases, with one run open.

    Attributes:
        id: under which the run can be opened again.
    """

    id: str

    def truncate_after(self, step: int) -> bool:
        """Remove what was logged of later steps; False where that is impossible."""
        return False

    @abstractmethod
    def configuration(self, settings: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    @abstractmethod
    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


Open = Callable[[str], Tracker]
"""Opens a run: a new one for an empty id."""


class Tracking:
    """A tracker on its own thread, told of each step once; also of a run that was killed and goes on.

    Everything of a step is sent together; which step is sent last is written to the run folder before. A run that goes
    on repeats the steps since its last checkpoint, with the same values: they are removed from the tracker and sent
    again, or not sent again where a tracker cannot remove them.

    Args:
        done: the step at which training begins or goes on.
        history: the lines of metrics.jsonl up to then, for a tracker that has not been told of them.
    """

    def __init__(
        self,
        name: str,
        opened: Open,
        folder: Path,
        done: int,
        history: Iterable[Mapping[str, Any]],
        settings: Mapping[str, Any],
        log: Log,
    ) -> None:
        self.name, self.folder, self.log = name, folder, log
        self.waiting: queue.Queue[_Step | None] = queue.Queue(_MAX_WAITING)
        self.now = _Step(done)
        self._warned = False
        given = (opened, done, _by_step(history), dict(settings))
        self.thread = threading.Thread(target=self._work, args=given, name="tracker", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        patience = _END if kind is None else _END_STOPPED
        until = time.monotonic() + patience
        with suppress(queue.Full):
            self.waiting.put(None, timeout=patience)
        self.thread.join(max(until - time.monotonic(), 0.0))
        if self.thread.is_alive():
            self._warn(f"not done after {patience:.0f} s")

    def record(self, line: Mapping[str, float | int | str]) -> None:
        """Keep a line of metrics.jsonl until its step ends."""
        self.now.scalars.update(_numbers(line))

    def show(self, pictures: Mapping[str, Picture]) -> None:
        """Keep pictures, by name, until their step ends."""
        self.now.pictures.update(pictures)

    def end_step(self, step: int) -> None:
        """Send what was kept since the last step ended; this never waits."""
        ended, self.now = self.now, _Step(step + 1)
        if ended.scalars or ended.pictures:
            ended.number = step
            try:
                self.waiting.put_nowait(ended)
            except queue.Full:
                self._warn("it is too slow, and steps are left out")

    def failed(self, error: Exception) -> None:
        """Report what could not be logged, once in a run."""
        self._warn(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            self.log.say(f"warning: {self.name}: {printable(why)}; the run goes on, and metrics.jsonl has every step")

    def _work(self, opened: Open, done: int, history: "list[_Step]", settings: Mapping[str, Any]) -> None:
        """The thread: open the run, send what comes, close it."""
        before = self._state()
        sent = int(before.get("step", -1))
        try:
            tracker = opened(str(before.get("id", "")))
            if sent > done and tracker.truncate_after(done):
                sent = done
            if not before:
                tracker.configuration(settings)
        except Exception as error:
            self.failed(error)
            while self.waiting.get() is not None:
                pass
            return
        for step in history:
            if step.number > sent:
                self._send(tracker, step)
        while (ended := self.waiting.get()) is not None:
            if ended.number > sent:
                self._send(tracker, ended)
        self._try(tracker.close)

    def _send(self, tracker: Tracker, step: "_Step") -> None:
        # The state first: a kill in between loses a step there, and repeats none.
        state = {"tracker": self.name, "id": tracker.id, "step": step.number}
        self._try(lambda: write_json(self.folder / STATE, state))
        if step.scalars:
            self._try(lambda: tracker.scalars(step.number, step.scalars))
        if step.pictures:
            self._try(lambda: tracker.pictures(step.number, step.pictures))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self.failed(error)

    def _state(self) -> dict[str, Any]:
        """What was kept of an earlier part of this run with this tracker; empty where there was none."""
        with suppress(OSError, ValueError, OutputError):
            found = read_object(self.folder / STATE)
            if found.get("tracker") == self.name and type(found.get("step")) is int:
                return found
        return {}


@dataclass
class _Step:
    """What is to be sent of a step."""

    number: int
    scalars: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)


def _by_step(lines: Iterable[Mapping[str, Any]]) -> list[_Step]:
    """The steps of lines of metrics.jsonl, in order."""
    steps = dict[int, _Step]()
    for line in lines:
        steps.setdefault(line["step"], _Step(line["step"])).scalars.update(_numbers(line))
    return list(steps.values())


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name != "step" and isinstance(value, int | float)}
