"""One class a kind of failure; each knows the exit code of the command line.

A message says what went wrong and where, then the cause, then how to fix it:

    error: cannot read /photos; no such folder; check the path given with --data
"""


class SmaltiError(Exception):
    """A failure the user can act on. `str(error)` is the one line shown after `error: `."""

    exit_code = 1

    def __init__(self, what: str, *, cause: str = "", fix: str = "") -> None:
        self.what, self.cause, self.fix = what, cause, fix
        super().__init__("; ".join(part for part in (what, cause, fix) if part))


class UsageError(SmaltiError):
    """A wrong flag, field, recipe or value."""

    exit_code = 2


class DataError(SmaltiError):
    """Images that are missing, unreadable or too few."""

    exit_code = 3


class CheckpointError(SmaltiError):
    """A checkpoint that is missing, damaged or does not fit."""

    exit_code = 4


class NumericError(SmaltiError):
    """A loss or gradient that is not a number."""

    exit_code = 5


class OutputError(SmaltiError):
    """A file or folder that cannot be written."""

    exit_code = 6


class LockError(SmaltiError):
    """A folder that another process is writing."""

    exit_code = 7


class DistributedError(SmaltiError):
    """Processes that train together and have lost each other, or never met."""

    exit_code = 8


class RefusedError(SmaltiError):
    """Something that would run, but is not worth running: a collapsed tokenizer."""

    exit_code = 9


class StoppedError(SmaltiError):
    """A run that was asked to end, by SIGTERM or Ctrl-C, and has saved: no failure. Its line says how to go on."""

    def __init__(self, what: str, *, cause: str, fix: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(what, cause=cause, fix=fix)


EXIT_OUT_OF_MEMORY = 12
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130
