"""`smalti evaluate` on several ranks: the features, and so every figure, are those of one process.

It takes ten seconds or more: three processes fit probes.
"""

import json
from pathlib import Path

import pytest

from tests.distributed.started import started
from tests.small_runs import CPU, pictures, pretrain, train_tokenizer

pytestmark = pytest.mark.processes


def figures(world: int, run: Path, data: Path) -> dict[str, object]:
    command = ["evaluate", str(run), str(data), *CPU, "--draws", "1", "--poolings", "mean", "--json"]
    with started(run.parent, [command] * world) as ranks:
        assert ranks.all_codes() == [0] * world, ranks.text(0)
        assert ranks.unwanted() == ""
        found: dict[str, object] = json.loads(ranks.text(0).splitlines()[-1])
        return found


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_figures_are_those_of_one_process(world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = pictures(tmp_path / "photos", per_class=40)
    assert train_tokenizer(photos, tmp_path / "tokenizer", 2) == 0
    assert pretrain(photos, tmp_path / "tokenizer", tmp_path / "run", 2, "--accept-tokenizer") == 0
    assert figures(world, tmp_path / "run", photos) == figures(1, tmp_path / "run", photos)
