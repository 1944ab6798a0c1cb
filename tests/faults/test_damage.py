"""Whatever is damaged in a checkpoint, the one before is read in its place, bit for bit."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from smalti.core import files, stored
from smalti.core.errors import CheckpointError
from smalti.core.log import Log
from smalti.training import checkpoint
from smalti.training.checkpoint import read_checkpoint
from tests.faults.trial import save, value_of

TRIALS = 1000

Damage = Callable[[random.Random, bytes], bytes]


def one_bit(chance: random.Random, content: bytes) -> bytes:
    position = chance.randrange(8 * len(content))
    return content[: position // 8] + bytes([content[position // 8] ^ 1 << position % 8]) + content[position // 8 + 1 :]


def cut_off(chance: random.Random, content: bytes) -> bytes:
    """More than the newline at the end of JSON, which nobody would miss."""
    return content[: chance.randrange(len(content.rstrip(b"\n")))]


def caught(run: Path, damage: Damage, trials: int) -> int:
    """How many damages of files of the newest checkpoint are caught; each file gets its share by its size."""
    paths = sorted((run / "checkpoints" / "step-00000020").iterdir())
    whole = {path: path.read_bytes() for path in paths}
    chance, found = random.Random(0), 0
    for _ in range(trials):
        path = chance.choices(paths, [len(content) for content in whole.values()])[0]
        damaged = damage(chance, whole[path])
        assert damaged != whole[path]
        path.write_bytes(damaged)
        try:
            found += value_of(run) == (10, 2.0)
        except Exception:  # what is read is neither of the two, or cannot be understood any more
            continue
        finally:
            path.write_bytes(whole[path])
    assert value_of(run) == (20, 3.0)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(tmp_path, 10, 2.0)
    save(tmp_path, 20, 3.0)
    return tmp_path


@pytest.mark.parametrize("damage", [one_bit, cut_off])
def test_every_damage_is_caught(run: Path, damage: Damage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "say", lambda self, line: None)
    assert caught(run, damage, TRIALS) == TRIALS


def test_a_page_of_zeros_is_caught(run: Path) -> None:
    path = run / "checkpoints" / "step-00000020" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-16] + bytes(16))
    assert value_of(run) == (10, 2.0)


def test_a_reader_that_skips_digests_is_caught(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "say", lambda self, line: None)
    verified = stored._verified

    def careless(path: Path) -> list[tuple[str, bytes]]:
        return [(name, (path / name).read_bytes()) for name, _ in stored._read_manifest(path).items()]

    assert list(verified(run / "checkpoints" / "step-00000020")) == careless(run / "checkpoints" / "step-00000020")
    monkeypatch.setattr(stored, "_verified", careless)
    assert caught(run, one_bit, 100) < 100


def test_the_reason_is_said_and_the_older_one_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step-00000020" / "state.safetensors").unlink()
    assert value_of(run) == (10, 2.0)
    said = capsys.readouterr().err
    assert said == (
        f"{run}: damaged: step-00000020 (state.safetensors is missing); step-00000010 is used in its place\n"
    )


def test_where_all_are_damaged_every_reason_is_given(run: Path) -> None:
    (run / "checkpoints" / "step-00000020" / "MANIFEST.json").write_text('{"model.')
    (run / "checkpoints" / "step-00000010" / "model.safetensors").write_bytes(b"")
    reasons = (
        r"damaged: step-00000020 \(MANIFEST\.json cannot be understood\), "
        r"step-00000010 \(model\.safetensors has 0 bytes, not \d+\); "
    )
    with pytest.raises(CheckpointError, match=reasons):
        read_checkpoint(run)


def test_files_of_another_step_are_caught(run: Path) -> None:
    """Each is whole by itself."""
    older, newer = (run / "checkpoints" / f"step-000000{step}" for step in (10, 20))
    intact = (newer / "model.safetensors").read_bytes()
    (newer / "model.safetensors").write_bytes((older / "model.safetensors").read_bytes())
    assert value_of(run) == (10, 2.0)
    (newer / "model.safetensors").write_bytes(intact)
    newer.rename(run / "checkpoints" / "step-00000030")
    assert value_of(run) == (10, 2.0)


def test_files_that_nobody_knows_are_left_alone(run: Path) -> None:
    (run / "checkpoints" / "step-00000020" / "notes.txt").write_text("mine")
    assert value_of(run) == (20, 3.0)


def about(run: Path, text: str) -> None:
    """Replace what the newest checkpoint says about itself, digest and all."""
    folder = run / "checkpoints" / "step-00000020"
    content = stored.read_folder(folder) | {"state.json": text.encode()}
    files.write_folder(folder, content)


def test_another_format_is_refused_and_not_passed_over(run: Path) -> None:
    about(run, json.dumps({"step": 20, "format": 2, "smalti": "9.0"}))
    with pytest.raises(
        CheckpointError,
        match=r"step-00000020 is of format 2; smalti 9\.0 wrote it, and this is .*, which reads format 1; "
        "use the version that wrote it",
    ):
        read_checkpoint(run)


def test_what_has_no_format_is_of_the_first(run: Path) -> None:
    about(run, '{"step": 20}\n')
    assert value_of(run) == (20, 3.0)


@pytest.mark.parametrize("text", ["[]", "{", "null", "{}"])
def test_a_state_that_cannot_be_understood_is_passed_over(run: Path, text: str) -> None:
    about(run, text)
    assert value_of(run) == (10, 2.0)


def test_a_folder_without_tensors_is_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_folder(run / "checkpoints" / "step-00000030", {"state.json": b'{"step": 30}'})
    files.write_folder(run / "checkpoints" / "step-00000040", {})
    assert value_of(run) == (20, 3.0)
    assert "step-00000030 (its tensors cannot be understood)" in capsys.readouterr().err


def test_damaged_ones_do_not_count_among_the_two_that_stay(run: Path) -> None:
    path = run / "checkpoints" / "step-00000020" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    save(run, 30, 4.0)
    assert kept(run) == [10, 20, 30]
    save(run, 40, 5.0)
    assert kept(run) == [30, 40]


def test_one_that_was_just_written_stays_also_behind_others(run: Path) -> None:
    save(run, 15, 4.0)
    assert kept(run) == [15, 20]


def test_retention_that_counts_damaged_ones_is_caught(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "is_intact", Path.exists)
    with pytest.raises(AssertionError):
        test_damaged_ones_do_not_count_among_the_two_that_stay(run)


def kept(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())
