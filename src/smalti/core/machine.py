"""What this process may use of the machine: memory and processors, of a container or job those of the container."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_SYSTEM = Path("/")


def usable_memory(system: Path = _SYSTEM) -> int:
    """Bytes of memory of this machine (8 GiB where that is unknown), or of this container or job, if that has less.

    Args:
        system: the folder with `proc` and `sys`, in which Linux says what limits a process.
    """
    try:
        least = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        least = 8 << 30
    for group in _control_groups("memory", system):
        for name in ("memory.max", "memory.limit_in_bytes"):  # of cgroup v2, in which no limit is "max", and of v1
            with suppress(OSError, ValueError):
                least = min(least, int((group / name).read_text()))
    return least


def usable_processors(system: Path = _SYSTEM) -> int:
    """Processors that this process may run on: those of its affinity where the system has that, else all.

    A container or job with a quota, as by `docker run --cpus 2`, has as many as that is worth, rounded up.

    Args:
        system: as of `usable_memory`.
    """
    least = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _control_groups("cpu", system):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # of cgroup v2, and of v1
            with suppress(OSError, ValueError):
                quota, period = map(int, " ".join((group / name).read_text() for name in names).split())
                least = min(least, math.ceil(quota / period)) if min(quota, period) > 0 else least  # v1: none is -1
    return least


def _control_groups(controller: str, system: Path) -> Iterator[Path]:
    """The folders of the control groups that this process is in, down from the whole system, of cgroup v2 and v1.

    A job of SLURM or systemd has a group below; of a container often only the topmost is to be seen, and is its own.
    """
    mount, lines = system / "sys/fs/cgroup", ["0::/", f"1:{controller}:/"]
    with suppress(OSError, ValueError):
        lines += (system / "proc/self/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, name = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        top, own = mount / controller if controllers else mount, PurePosixPath(name.lstrip("/"))
        yield from (top / place for place in (own, *own.parents))
