"""What a process may use of the machine: memory of containers and jobs, processors by affinity and quota."""

import os
from pathlib import Path

import pytest

from smalti.core.machine import usable_memory, usable_processors


def written(system: Path, files: dict[str, str]) -> Path:
    """A folder in which Linux says this of a process."""
    for name, text in files.items():
        (system / name).parent.mkdir(parents=True, exist_ok=True)
        (system / name).write_text(text)
    return system


V2, V1 = "sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"
NO_LIMIT = "9223372036854771712\n"
JOB = "4:memory:/slurm/job_7\n3:cpu,cpuacct:/slurm/job_7\n0::/user.slice/job.scope\n"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({V2: "8388608\n"}, 8 << 20),
        ({V1: "8388608\n"}, 8 << 20),
        ({V2: "max\n"}, None),
        ({V1: NO_LIMIT}, None),
        ({V2: ""}, None),
        ({}, None),  # as on macOS
        ({"proc/self/cgroup": "4:memory:/docker/0a1b\n0::/\n", V1: "8388608\n"}, 8 << 20),  # its own group is the top
        ({"proc/self/cgroup": JOB, "sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes": "8388608"}, 8 << 20),
        ({"proc/self/cgroup": JOB, "sys/fs/cgroup/memory/slurm/memory.limit_in_bytes": "8388608"}, 8 << 20),
        ({"proc/self/cgroup": JOB, "sys/fs/cgroup/user.slice/job.scope/memory.max": "8388608", V2: "max"}, 8 << 20),
        ({"proc/self/cgroup": JOB, "sys/fs/cgroup/user.slice/memory.max": "8388608"}, 8 << 20),
        ({"proc/self/cgroup": JOB, "sys/fs/cgroup/memory/slurm/job_8/memory.limit_in_bytes": "8388608"}, None),
        ({"proc/self/cgroup": "no such line\n::\n", V2: "8388608"}, 8 << 20),
    ],
)
def test_the_limit_of_a_container_or_job_counts_where_it_is_smaller(
    tmp_path: Path, files: dict[str, str], limit: int | None
) -> None:
    machine = usable_memory(tmp_path / "nothing")
    assert machine > 64 << 20
    assert usable_memory(written(tmp_path, files)) == (limit or machine)


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
        ({"sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"proc/self/cgroup": JOB, "sys/fs/cgroup/user.slice/job.scope/cpu.max": "200000 100000"}, 2),
        ({}, 64),
    ],
)
def test_a_quota_is_worth_so_many_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], processors: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert usable_processors(written(tmp_path, files)) == processors


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs an affinity")
def test_processors_are_those_that_the_process_may_run_on() -> None:
    allowed = os.sched_getaffinity(0)
    assert usable_processors(Path("/nothing")) == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_processors() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_processors_without_affinity_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert usable_processors(Path("/nothing")) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_processors() == 1
