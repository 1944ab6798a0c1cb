"""One exception class per kind of failure, with the exit code of the command line.

A message says what went wrong and where, then the cause, then how to fix it:

    error: cannot read /photos; no such folder; check the path given with --data
"""


class SmaltiError(Exception):
    """A failure the user can act on. `str(error)` is the one line shown after `error: `."""

    exit_code = 1

    def __init__(self, what: str, *, cause: str = "", fix: str = "", exit_code: int | None = None) -> None:
        self.what, self.cause, self.fix = what, cause, fix
        self.exit_code = type(self).exit_code if exit_code is None else exit_code
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
    """A loss or gradient that is infinite or NaN."""

    exit_code = 5


class OutputError(SmaltiError):
    """A file or folder that cannot be written."""

    exit_code = 6


class LockError(SmaltiError):
    """A folder that another process is writing."""

    exit_code = 7


class DistributedError(SmaltiError):
    """A process of a distributed run that is lost, or never joined."""

    exit_code = 8


class RefusedError(SmaltiError):
    """A result that would be worthless: of a collapsed tokenizer, or an export that computes something else."""

    exit_code = 9


class UnmeasuredError(SmaltiError):
    """A run that is trained and saved, but could not be measured. The message says how to measure it."""


class StoppedError(SmaltiError):
    """A run that SIGTERM or Ctrl-C has ended after saving; not a failure. The message says how to resume it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was missing, of the machine or of its accelerator."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


EXIT_OUT_OF_MEMORY = 12
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130
