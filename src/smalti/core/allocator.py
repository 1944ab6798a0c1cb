"""Settings of the C library's memory allocator, and the peak memory of this process."""

import ctypes
import resource
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`."""
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory in this process, for the next tensor of the same size.

    Every training step frees and allocates the same large tensors. By default glibc returns such blocks to the
    operating system at once and gets them back as pages that must be zeroed: 7 to 12 % of a step on a CPU, a fifth of
    loading a batch. With this setting the process stays at its peak memory until it ends.

    Returns:
        Whether the setting was accepted; only glibc on Linux has it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
