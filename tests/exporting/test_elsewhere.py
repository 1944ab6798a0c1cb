"""A trained run is exported, and the lines in its card load it where smalti cannot be imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from smalti.cli import main
from smalti.exporting.certificate import CERTIFICATE
from tests.small_runs import pictures, pretrain, train_tokenizer

USES = {
    "timm": "import torch\nprint(tuple(model(torch.rand(2, 3, 16, 16)).shape))",
    "huggingface": "print(tuple(features.shape))",
    "onnx": "",
    "torch-export": "",
}
GIVEN = "from PIL import Image\nimages = [Image.new('RGB', (20, 20), 'teal')] * 2\n"
SHAPES = {"timm": "(2, 16)", "huggingface": "(2, 17, 16)"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    photos = pictures(folder / "photos")
    assert train_tokenizer(photos, folder / "tokenizer", 2) == 0
    visible = ["--decoder", "cross-attention", "--accept-tokenizer"]
    assert pretrain(photos, folder / "tokenizer", folder / "run", 2, *visible) == 0
    return folder / "run"


@pytest.mark.parametrize("target", USES)
def test_the_lines_in_the_card_need_no_smalti(target: str, run: Path, tmp_path: Path) -> None:
    pytest.importorskip({"huggingface": "transformers", "onnx": "onnxruntime"}.get(target, "timm"))
    out = tmp_path / "exported"
    assert main(["export", str(run), "--to", target, "--out", str(out)]) == 0
    assert (out / CERTIFICATE).is_file()
    found = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    assert found is not None
    lines = found[1].replace("FOLDER", str(out))
    program = f"import sys\nsys.modules['smalti'] = None\n{GIVEN}{lines}\n{USES[target]}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert SHAPES.get(target, "") in done.stdout
