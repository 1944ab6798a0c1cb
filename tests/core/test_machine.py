"""What a process may use of the machine: memory limits of containers, and processors by affinity."""

import os
from pathlib import Path

import pytest

from smalti.core.machine import usable_memory, usable_processors


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("8388608\n", 8 << 20),
        ("max\n", None),
        ("9223372036854771712\n", None),  # no limit in v1
        ("", None),
        (None, None),  # no such file, as on macOS
    ],
)
def test_the_limit_of_a_container_counts_where_it_is_smaller(
    tmp_path: Path, text: str | None, limit: int | None
) -> None:
    file, missing = tmp_path / "memory.max", tmp_path / "missing"
    if text is not None:
        file.write_text(text)
    machine = usable_memory([])
    assert machine > 64 << 20
    assert usable_memory([missing, file]) == usable_memory([file, missing]) == (limit or machine)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs an affinity")
def test_processors_are_those_that_the_process_may_run_on() -> None:
    allowed = os.sched_getaffinity(0)
    assert usable_processors() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_processors() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_processors_without_affinity_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_processors() == 1
