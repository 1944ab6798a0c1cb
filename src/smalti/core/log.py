"""The output of a run: metrics.jsonl for programs, a progress bar on a terminal, plain lines elsewhere."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from smalti.core.addresses import without_secrets
from smalti.core.errors import OutputError
from smalti.core.files import append
from smalti.core.ranks import is_rank0

_PLAIN_EVERY = 10.0
"""Seconds between plain progress lines."""
_BAR, _BARS = 20, (100, 120)
"""Columns of the bar; columns of a terminal from which there is one, and from which it has twice its width."""
_TITLE, _TIME = 12, 8
"""Columns of the title, where there is a bar, and of the time left."""
_SPEED_OVER = 3600.0
"""Seconds over which the time left is estimated: two updates at least, which slow steps bring minutes apart."""


class _Quiet(Console):
    """A console that stops printing when its pipe is closed, as by `| head`, instead of ending the run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        silence(sys.stderr)


class Log:
    """The console (standard error; results go to standard output) and the metrics file of a run.

    In a distributed run, only rank 0 prints and records.

    Attributes:
        also: is given every line that is recorded.
    """

    def __init__(self, metrics: Path | None = None) -> None:
        self.also: Callable[[Mapping[str, float | int | str]], None] | None = None
        self.console: Console = _Quiet(stderr=True, highlight=False)
        self.path = metrics
        self._lost = 0
        self._warned = False

    def say(self, line: str) -> None:
        """Print one line, with control characters escaped."""
        if is_rank0():
            self.console.print(printable(line), markup=False, soft_wrap=True)

    def record(self, **values: float | int | str) -> None:
        """Append one line to metrics.jsonl, where there is one, and give it to `also`.

        A line that cannot be written does not end the run: a warning is printed once, and the next line that can be
        written has the number of missing lines under `lines_lost`.
        """
        if not is_rank0():
            return
        if self.also is not None:
            self.also(values)
        if self.path is None:
            return
        gap = {"lines_lost": self._lost} if self._lost else {}
        try:
            append(self.path, (json.dumps(values | gap) + "\n").encode())
        except OutputError as error:
            self._lost += 1
            if not self._warned:
                self._warned = True
                self.say(f"{error}; the run goes on, with a gap in that file")
        else:
            self._lost = 0

    @property
    def on_screen(self) -> bool:
        """Whether what is shown can be written over: on a terminal, not in what `FORCE_COLOR` alone calls one."""
        return is_rank0() and self.console.is_interactive and self.console.file.isatty()

    @contextmanager
    def progress(self, title: str, total: int, done: int = 0) -> Iterator["Bar"]:
        """A bar of `total` steps, of which `done` were done before, with the time left."""
        if not self.on_screen:
            yield PlainBar(self, title, total, done)
            return
        bar = _BAR * sum(self.console.width >= least for least in _BARS)
        columns = (
            TextColumn(f"{{task.description:<{_TITLE if bar else 0}}}"),
            *([BarColumn(bar_width=bar)] if bar else []),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            _Note(self.console, bar),
        )
        with Progress(*columns, console=self.console, speed_estimate_period=_SPEED_OVER) as progress:
            yield RichBar(progress, progress.add_task(title, total=total, completed=done, note=""))


class _Note(ProgressColumn):
    """The numbers behind the bar, as many as the rest of the line has room for: those at the end are dropped."""

    def __init__(self, console: Console, bar: int) -> None:
        self.console, self.bar = console, bar
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        titled = max(_TITLE if self.bar else 0, len(task.description))
        gaps = 4 if self.bar else 3
        room = self.console.width - titled - self.bar - len(f"{task.completed}/{task.total}") - _TIME - gaps
        shown, *others = task.fields["note"].split("  ")
        for part in others:
            if len(shown) + 2 + len(part) > room:
                break
            shown += f"  {part}"
        return Text(shown if len(shown) <= room else "")


class RichBar:
    """Progress of one stage, for terminals."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def update(self, done: int, note: str = "") -> None:
        self.progress.update(self.task, completed=done, note=printable(note))


class PlainBar:
    """The same for files and pipes: a line every ten seconds, and one at the end."""

    def __init__(self, log: Log, title: str, total: int, done: int) -> None:
        self.log, self.title, self.total, self.before = log, title, total, done
        self.start = self.shown = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if done < self.total and now - self.shown < _PLAIN_EVERY:
            return
        self.shown = now
        left = (now - self.start) / max(done - self.before, 1) * (self.total - done)
        self.log.say(f"{self.title:<12} {done}/{self.total}  {left:4.0f} s left  {note}")


Bar: TypeAlias = RichBar | PlainBar


def printable(text: str) -> str:
    """A text for a terminal or a page: control characters are escaped, so that no name of a file can control it, and
    addresses are without secrets."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in without_secrets(text))


def silence(stream: TextIO) -> None:
    """Send what is written to a stream that nobody reads any more, as behind `| head`, to nowhere: what is in its
    buffer would fail again at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def print_json(value: object) -> None:
    """One JSON object as the last line of standard output."""
    print(json.dumps(value), flush=True)
