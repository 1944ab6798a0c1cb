"""Real kills at any time, several in a row: what a run ends in is what it would have ended in.

A test takes 5 to 8 seconds: a run is begun six times.
"""

from pathlib import Path

import pytest

from tests.faults.kills import KINDS, MORE_KINDS, Nursery, Whole, World, trial

pytestmark = pytest.mark.processes

KILLS = 5


@pytest.fixture(scope="module")
def world(one: Nursery, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.made(tmp_path_factory.mktemp("world"), one)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_five_times_ends_as_if_nothing_had_happened(
    kind: str, one: Nursery, world: World, tmp_path: Path
) -> None:
    """A01, A07, A09, A10."""
    whole = Whole.made(one, kind, world, tmp_path / "whole")
    found = trial(one, whole, tmp_path, KILLS, seed=0)
    assert (found.kills, found.failed) == (KILLS, ())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS | MORE_KINDS)
def test_so_does_one_that_is_killed_200_times(kind: str, one: Nursery, world: World, tmp_path: Path) -> None:
    """A01, A07, A09, A10, compiled and streamed too."""
    whole = Whole.made(one, kind, world, tmp_path / "whole")
    found = trial(one, whole, tmp_path, 200, seed=1)
    assert (found.kills, found.failed) == (200, ())
