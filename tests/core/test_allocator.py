"""Freed memory stays with the process, where the C library can be asked; the most it has held is known."""

import subprocess
import sys

import pytest

from smalti.core.compute import keep_freed_memory, peak_memory

_COUNT_FAULTS = """
import resource, sys
import numpy as np
from smalti.core.compute import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("no glibc")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    np.ones(8 << 20)
before = faults()
for _ in range(8):
    np.ones(8 << 20)
print(faults() - before)
"""


def faults(how: str) -> int:
    """Pages fetched while an array of 64 MB is made and freed eight times."""
    done = subprocess.run([sys.executable, "-c", _COUNT_FAULTS, how], capture_output=True, text=True)
    if done.stderr.strip() == "no glibc":
        pytest.skip("only glibc can be asked")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_pages_are_fetched_once() -> None:
    assert faults("keep") < 200 < faults("default")


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()


def test_the_most_memory_held_is_known_in_bytes() -> None:
    before = peak_memory()
    held = bytearray(before + (64 << 20))  # more than ever before, touched by being zeroed
    held[::4096] = b"1" * len(held[::4096])
    assert before + (64 << 20) <= peak_memory() < 3 * before + (256 << 20)
