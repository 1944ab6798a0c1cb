"""Every example runs."""

import runpy
from pathlib import Path

import pytest

from tests.small_runs import flat_pictures, result

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_pretraining_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = flat_pictures(tmp_path / "photos", 70)
    example = runpy.run_path(str(EXAMPLES / "pretrain_from_folder.py"))
    example["main"]([str(photos), "--out", str(tmp_path / "run"), "--steps", "2"])
    assert result(tmp_path / "run" / "backbone")["steps"] == 2
    assert (tmp_path / "run" / "report.html").exists()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("tokenizer: PSNR ")
    assert printed[-1] == "features of a black image: (1, 96)"
