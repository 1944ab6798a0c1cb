"""How the C library hands out memory, and how much of it there has been."""

import ctypes
import resource
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`."""
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process, for the next tensor of the same size.

    Every step of training frees and allocates the same large tensors. By default glibc returns such blocks to the
    system at once and gets them back as pages to be zeroed: 7 to 12 % of a step on a CPU, a fifth of loading a batch.
    The process then keeps what it once needed until it ends.

    Returns:
        Whether the library could be asked; only glibc on Linux can.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))


def peak_memory() -> int:
    """Bytes of memory that this process has held at most, so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
