"""Signals while something runs that must not be cut off in the middle: they are noted, and answered between two steps.

SIGTERM and SIGINT ask for an end, SIGUSR1 for a checkpoint. A second one that asks for an end gets it at once.
Where nothing has to be finished first, SIGTERM is an exception, as Ctrl-C is.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from smalti.core.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, StoppedError
from smalti.core.ranks import is_rank0, world_size

_HEARD = b"\n%s: the step is finished and saved first; once more ends at once\n"
_SHOW_CURSOR = b"\x1b[?25h"
"""A progress bar has hidden it."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM where nothing has to be finished first; no `Exception`, so that nobody takes it for a failure."""


@contextmanager
def terminating() -> Iterator[None]:
    """Raise `TerminatedError` on SIGTERM until the end of the block, so that locks and files are given back.

    A second one ends the process at once. A handler that somebody else has set stays theirs.
    """
    mine = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with suppress(ValueError):
        if mine:
            signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Requests:
    """What signals have asked for, and has not been done.

    Attributes:
        stop: the signal that asked for an end; None as long as there was none.
        save: whether a checkpoint is asked for.
    """

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self.save = False

    def note(self, number: int, _: FrameType | None) -> None:
        """The handler of all of them."""
        if number == signal.SIGUSR1:
            self.save = True
        elif self.stop is None or (world_size() > 1 and number == signal.SIGTERM):  # from torchrun and from a scheduler
            first, self.stop, self.save = self.stop is None, self.stop or signal.Signals(number), True
            if first and is_rank0():
                _tell(_HEARD % self.stop.name.encode())
        else:
            _end_at_once(number)

    def agreed(self) -> "Requests":
        """What any process of the run was asked for: all do it, after the same step. Alone, these requests."""
        if world_size() == 1:
            return self
        from smalti.distributed.collectives import all_reduce_max  # needs torch, which the command line starts without

        found = Requests()
        stop, save = all_reduce_max(self.stop or 0, self.save)
        found.stop, found.save = signal.Signals(stop) if stop else None, bool(save)
        return found

    def stopped(self, what: str, fix: str) -> StoppedError:
        """The end that was asked for, as an error to raise."""
        code = EXIT_PREEMPTED if self.stop == signal.SIGTERM else EXIT_INTERRUPTED
        return StoppedError(what, cause="" if self.stop is None else f"on {self.stop.name}", fix=fix, exit_code=code)


@contextmanager
def noted() -> Iterator[Requests]:
    """Note signals instead of obeying them, until the end of the block.

    A signal that somebody has a handler for, or ignores (nohup, a notebook), stays theirs. Outside the main thread of
    the main interpreter nothing can be noted, and all stays as it is.
    """
    requests = Requests()
    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, _terminate):
                with suppress(ValueError):  # not in the main thread of the main interpreter
                    before[number] = signal.signal(number, requests.note)
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise TerminatedError


def _end_at_once(number: int) -> None:
    """As if there were no handler; the system says of which signal this process has died."""
    if sys.stderr is not None and sys.stderr.isatty():
        _tell(_SHOW_CURSOR)
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _tell(what: bytes) -> None:
    """Write past all buffers: a handler may have interrupted somebody who is writing."""
    with suppress(OSError):
        os.write(2, what)
