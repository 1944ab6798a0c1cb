"""Runs that are killed at a certain place, and runs with one guarantee less, which have to end in other bits."""

import signal
from pathlib import Path

import pytest

from tests.faults.kills import Nursery, Whole, World, end_of, go_on

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def world(one: Nursery, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.made(tmp_path_factory.mktemp("world"), one)


@pytest.fixture(scope="module")
def whole_runs(one: Nursery, world: World) -> dict[str, Whole]:
    """Every kind of run, uninterrupted, made when it is needed."""
    folder = world.photos.parent

    class Wholes(dict[str, Whole]):
        def __missing__(self, kind: str) -> Whole:
            self[kind] = Whole.made(one, kind, world, folder / f"whole-{kind}")
            return self[kind]

    return Wholes()


def killed_at(one: Nursery, whole: Whole, run: Path, place: str) -> None:
    """Begin a run that kills itself."""
    assert one.run(whole.command(run), f"{whole.change}+{place}") == -signal.SIGKILL, one.told()


def differing(one: Nursery, whole: Whole, run: Path, change: str = "") -> set[str]:
    """Go on with a run to its end. Returns the files that are not those of the run that nobody interrupted."""
    assert one.run(go_on(whole, run), f"{whole.change}+{change}") == 0, one.told()
    found = end_of(run)
    return {name for name in found.keys() | whole.files.keys() if found.get(name) != whole.files.get(name)}


@pytest.mark.parametrize(
    "place",
    [
        "dies before step 1",
        "dies in the third part",
        "dies after an epoch",
        "dies while measuring",
        "dies while the result is written",
    ],
)
def test_a_run_that_was_killed_at_a_certain_place_ends_as_if_nothing_had_happened(
    place: str, one: Nursery, world: World, whole_runs: dict[str, Whole], tmp_path: Path
) -> None:
    """A06 before the first checkpoint, A08 between the last step of an epoch and its checkpoint, A09, A14."""
    whole = whole_runs["epochs"]
    killed_at(one, whole, tmp_path / "run", place)
    assert not (tmp_path / "run" / "result.json").exists()
    assert differing(one, whole, tmp_path / "run") == set()
    told = one.told().splitlines()
    assert ("no checkpoint yet: starting from step 0" in told) == (place == "dies before step 1")


@pytest.mark.parametrize(
    ("kind", "place", "change", "files"),
    [
        ("dvae", "dies before step 11", "averages forgotten", {"model.safetensors"}),
        ("dvae", "dies before step 11", "moments forgotten", {"metrics.jsonl", "model.safetensors"}),
        ("dvae", "dies before step 11", "dying codes forgotten", {"metrics.jsonl", "state.safetensors"}),
        ("dvae", "dies before step 11", "order from the start", {"metrics.jsonl"}),
        ("dvae", "dies before step 11", "metrics stay", {"metrics.jsonl"}),
        ("vq", "dies before step 11", "codebook forgotten", {"metrics.jsonl", "state.safetensors"}),
        ("rollback", "dies before step 33", "rollbacks forgotten", {"metrics.jsonl"}),
        ("rollback", "dies before step 22", "losses forgotten", {"metrics.jsonl"}),
    ],
)
def test_state_that_is_not_taken_up_is_caught(
    kind: str,
    place: str,
    change: str,
    files: set[str],
    one: Nursery,
    whole_runs: dict[str, Whole],
    tmp_path: Path,
) -> None:
    """Broken on purpose, for A01, A07 and I04."""
    killed_at(one, whole_runs[kind], tmp_path / "run", place)
    assert differing(one, whole_runs[kind], tmp_path / "run", change) >= files


@pytest.mark.parametrize("change", ["late noise", "late copies"])
def test_randomness_and_copies_that_are_late_are_caught(
    change: str, one: Nursery, world: World, tmp_path: Path
) -> None:
    """Broken on purpose: also the run that nobody interrupts has them."""
    whole = Whole.made(one, "dvae", world, tmp_path / "whole", change)
    killed_at(one, whole, tmp_path / "run", "dies before step 11")
    assert "metrics.jsonl" in differing(one, whole, tmp_path / "run")


def test_a_silent_start_from_zero_is_caught(one: Nursery, whole_runs: dict[str, Whole], tmp_path: Path) -> None:
    """B05, and the same broken on purpose: a run of the same bits, after losing hours."""
    whole, run = whole_runs["dvae"], tmp_path / "run"
    killed_at(one, whole, run, "dies before step 11")
    for file in (run / "checkpoints").rglob("state.safetensors"):
        file.write_bytes(b"")
    assert one.run(go_on(whole, run)) == 4
    assert "error: no usable checkpoint in " in one.told()
    assert one.run(go_on(whole, run), "begins anew whatever happens") == 0


def test_weights_that_are_no_numbers_are_not_saved(one: Nursery, whole_runs: dict[str, Whole], tmp_path: Path) -> None:
    """B11, where the step that made them is swallowed on purpose; what was saved before is taken up."""
    whole, run = whole_runs["dvae"], tmp_path / "run"
    assert one.run(whole.command(run), "no number is no error") == 5
    assert "error: step 6 is not saved; " in one.told()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000003"]
    assert differing(one, whole, run) == set()
