"""One exception class per kind of failure, with the exit code of the command line.

A message says what went wrong and where, then the cause, then how to fix it:

    error: cannot read /photos; no such folder; check the path given with --data
"""

import errno


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


EXIT_OUT_OF_MEMORY = 12
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130

_NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""In messages of torch, the last one of libraries of CUDA."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_NO_PATH = ("determine home directory", "embedded null byte")
"""In messages of pathlib and of the system."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was missing, of the machine or of its accelerator."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return any(sign in str(error) for sign in _NO_MEMORY)


def unforeseen(error: Exception) -> SmaltiError:
    """What an exception that is none of ours says to the user: a limit of this machine, or a bug of ours."""
    text = str(error)
    if is_out_of_memory(error):
        fix = "lower --plan.batch-size; or lower --data.limit"
        return SmaltiError("out of memory", fix=fix, exit_code=EXIT_OUT_OF_MEMORY)
    if any(kind.__name__ == "BackendCompilerFailed" for kind in type(error).__mro__):  # of torch, not imported here
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        cause = next((line for line in lines if " error:" in line), " ".join(lines[:2]))[:200]
        fix = "use --compile off, for the demo --pretrain.compile off"
        return UsageError("torch cannot compile the network on this machine", cause=cause, fix=fix)
    if "can't start new thread" in text:
        fix = "raise the limit of processes: ulimit -u, or that of the container"
        return SmaltiError("no more threads can be started here", fix=fix, exit_code=EXIT_OUT_OF_MEMORY)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        where = f"cannot write {error.filename}" if error.filename else "cannot write"
        return OutputError(where, cause=error.strerror or text, fix="make room, or write elsewhere")
    if any(sign in text for sign in _NO_PATH):
        cause = "it has a ~ of an unknown user, or a NUL"
        return UsageError("a path cannot be used", cause=cause, fix="check the paths")
    fix = "this is a bug of ours: run again with --debug and report it"
    return SmaltiError(f"{type(error).__name__}: {text}", fix=fix)
