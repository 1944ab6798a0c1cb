"""Signals during training: a handler records them, and the training loop acts on them between two steps.

SIGTERM and SIGINT request the end of the run, SIGUSR1 a checkpoint. A second SIGTERM or SIGINT ends the run at once.
Where nothing has to be finished first, SIGTERM raises an exception, as Ctrl-C does.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from smalti.core.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, StoppedError
from smalti.core.ranks import is_rank0, world_size

_STOPPING = b"\n%s: the step is finished and saved first; once more ends at once\n"
_SHOW_CURSOR = b"\x1b[?25h"
"""Shows the cursor again, which a progress bar has hidden."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM where nothing has to be finished first; not an `Exception`, so that no handler takes it for a failure."""


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise `TerminatedError` on SIGTERM until the end of the block, so that locks and files are released.

    A second SIGTERM ends the process at once. A handler that is already set is kept.
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


class SignalRequests:
    """Pending requests by signals.

    Attributes:
        stop: the signal that requested the end of the run, or None.
        save: whether a checkpoint is requested.
    """

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self.save = False

    def handle(self, number: int, _: FrameType | None) -> None:
        """The handler of all these signals."""
        if number == signal.SIGUSR1:
            self.save = True
        elif self.stop is None or (world_size() > 1 and number == signal.SIGTERM):  # from torchrun and from a scheduler
            first, self.stop, self.save = self.stop is None, self.stop or signal.Signals(number), True
            if first and is_rank0():
                _write_stderr(_STOPPING % self.stop.name.encode())
        else:
            _end_at_once(number)

    def all_reduce(self) -> "SignalRequests":
        """The requests of all ranks combined, so that all ranks act on them after the same step."""
        if world_size() == 1:
            return self
        from smalti.distributed.collectives import all_reduce_max  # needs torch, which the command line starts without

        found = SignalRequests()
        stop, save = all_reduce_max(self.stop or 0, self.save)
        found.stop, found.save = signal.Signals(stop) if stop else None, bool(save)
        return found

    def as_error(self, what: str, fix: str) -> StoppedError:
        """The requested end as an error to raise."""
        code = EXIT_PREEMPTED if self.stop == signal.SIGTERM else EXIT_INTERRUPTED
        return StoppedError(what, cause="" if self.stop is None else f"on {self.stop.name}", fix=fix, exit_code=code)


@contextmanager
def recorded_signals() -> Iterator[SignalRequests]:
    """Record signals instead of ending, until the end of the block.

    A signal that already has a handler or is ignored (nohup, a notebook) is left alone. Outside the main thread of the
    main interpreter no handler can be set, and nothing is recorded.
    """
    requests = SignalRequests()
    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, _terminate):
                with suppress(ValueError):  # not in the main thread of the main interpreter
                    before[number] = signal.signal(number, requests.handle)
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise TerminatedError


def _end_at_once(number: int) -> None:
    """End this process by the signal's default action, so that its exit status names the signal."""
    if sys.stderr is not None and sys.stderr.isatty():
        _write_stderr(_SHOW_CURSOR)
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _write_stderr(what: bytes) -> None:
    """Write to standard error without a buffer, since the handler may have interrupted a write to the buffer."""
    with suppress(OSError):
        os.write(2, what)
