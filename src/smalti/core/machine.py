"""What this process may use of the machine: memory and processors, of a container those of the container."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container has, in bytes: cgroup v2, in which no limit is "max", and v1."""


def usable_memory(limits: Sequence[Path] = _LIMITS) -> int:
    """Bytes of memory of this machine (8 GiB where that is unknown), or of this container, if that has less.

    Args:
        limits: files with the limit of the container; those that do not exist or hold no number are passed over.
    """
    try:
        least = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        least = 8 << 30
    for file in limits:
        with suppress(OSError, ValueError):
            least = min(least, int(file.read_text()))
    return least


def usable_processors() -> int:
    """Processors that this process may run on: those of its affinity where the system has that, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
