"""How worker processes end, what is said about it, and which images are to blame."""

import signal
from typing import NamedTuple

from smalti.core.errors import DataError
from smalti.data.workers.slots import IDLE, STARTING

FEWER = "use fewer --num-workers, a smaller batch, or --num-workers 0"

_STRIKES = 2
"""Being read at so many SIGKILLs, an image is taken for their cause; at one, it may be that memory ran out."""

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


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


def hang(position: int, seconds: float) -> Death:
    """The end of a worker that had to be killed because it did not answer."""
    return Death(position, f"gave no answer in {seconds:g} s", f"no answer in {seconds:g} s", certain=True)


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


class Deaths:
    """Remembers the deaths of `num_workers` workers."""

    def __init__(self, num_workers: int) -> None:
        self._most = max(5, 2 * num_workers)
        self._in_a_row = 0
        self._strikes: dict[int, int] = {}

    def count(self, one: Death) -> bool:
        """Take note of a death.

        Returns:
            Whether the image that was being read is to blame.

        Raises:
            DataError: workers keep dying: more than five in a row, and more than two a worker, between two successes.
        """
        self._in_a_row += 1
        if self._in_a_row > self._most:
            raise DataError("data workers keep dying", cause=f"the last one {one.how}", fix=FEWER)
        if one.position in (IDLE, STARTING):
            return False
        self._strikes[one.position] = self._strikes.get(one.position, 0) + 1
        return one.certain or self._strikes[one.position] >= _STRIKES

    def success(self) -> None:
        """A worker has finished something."""
        self._in_a_row = 0
