"""The benchmark of checkpoints measures both ways."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_it_prints_the_share_of_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--width", "16", "--depth", "1", "--batch-size", "2", "--every", "1", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["checkpoint.py", *sizes, "--out", str(tmp_path), "--json"])
    runpy.run_path(str(ROOT / "benchmarks/checkpoint.py"), run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    for way in ("waited_for", "beside"):
        assert set(found[way]) == {"stalled_seconds", "slowed_seconds", "step_seconds", "share"}
        assert found[way]["stalled_seconds"] > 0
    assert list(tmp_path.iterdir()) == []
