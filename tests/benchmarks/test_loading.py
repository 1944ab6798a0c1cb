"""The benchmarks of loading run, and what they compare is the same thing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save
from tests.small_runs import flat_pictures

from smalti.core.config import to_json
from smalti.core.files import write_folder
from smalti.tokenizers.dalle import DallE

FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *arguments: str) -> dict[str, object]:
    command = [sys.executable, str(FOLDER / name), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_loader(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    result = run("loader.py", str(flat_pictures(tmp_path / "photos", 5)), "--batch-size", "3", "--steps", "2")
    assert {"ratio_vs_reference", "images_per_second_core", "ratio_pack", "ratio_pack_raw"} <= set(result)
    assert result["files"] == 5


def test_jitter(tmp_path: Path) -> None:
    result = run("jitter.py", str(flat_pictures(tmp_path / "photos", 3)), "--crops", "1")
    both = result["both: our default against the released code"]
    matrix = result["one matrix for three steps"]
    assert isinstance(both, dict)
    assert isinstance(matrix, dict)
    assert 0 < matrix["mean"] < 4
    assert 0 < both["mean"] < 15


def test_letter(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, noise in enumerate(np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)):
        Image.fromarray(noise).resize((1000, 800)).save(folder / f"{number}.jpg")
    tokenizer = DallE(vocab_size=16, width=8, depth=1)
    weights = {name: value.contiguous() for name, value in tokenizer.build().state_dict().items()}
    config = json.dumps({"kind": "DallE", "config": to_json(tokenizer)}).encode()
    write_folder(tmp_path / "tokenizer", {"config.json": config, "model.safetensors": save(weights)})
    model = ("--tokenizer", str(tmp_path / "tokenizer"), "--side", "32", "--images", "5")
    result = run("letter.py", str(folder), "--crops", "2", *model)
    small, tokens = result["64 pixels"], result["tokens"]
    assert isinstance(small, dict)
    assert isinstance(tokens, dict)
    assert small["share_at_a_fraction"] > 0
    assert 0 < small["mean"] < 10
    assert tokens["tokens"] == 5 * 16
    assert 0 <= tokens["share_changed"] <= 1
