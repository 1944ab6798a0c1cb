"""`smalti prepare` on several ranks: the shards are those of one process, byte by byte.

It takes ten seconds or more: seven processes write shards, one after another or in pairs.
"""

import json
from pathlib import Path

import pytest

from smalti.data import write_shards
from tests.distributed.started import started
from tests.small_runs import pictures

pytestmark = pytest.mark.processes


def prepared(world: int, photos: Path, out: Path) -> dict[str, object]:
    command = ["prepare", str(photos), "--out", str(out), "--side", "32", "--max-bad-fraction", "0.2", "--json"]
    with started(photos.parent, [command] * world) as ranks:
        assert ranks.all_codes() == [0] * world, ranks.text(0)
        assert ranks.unwanted() == ""
        found: dict[str, object] = json.loads(ranks.text(0).splitlines()[-1])
        return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_shards_are_those_of_one_process(world: int, tmp_path: Path) -> None:
    photos = pictures(tmp_path / "photos", per_class=200)
    assert world * write_shards._CHUNK < 400  # so there are two rounds, and in the last one a rank has no image
    for path in sorted(photos.rglob("*.png"))[3:300:200]:
        path.write_bytes(b"not a photograph")
    alone, together = tmp_path / "alone", tmp_path / "together"
    one, several = prepared(1, photos, alone), prepared(world, photos, together)
    assert one["digest"] == several["digest"]
    assert several["bad"] == 2
    assert contents(alone) == contents(together)
    assert prepared(world, photos, together)["written"] == 0, "complete, so verified and left alone"
    first = sorted(together.glob("*.tar"))[0]
    first.write_bytes(first.read_bytes()[:-1])
    assert prepared(world, photos, together)["written"] == 1
    assert contents(alone) == contents(together)
