"""`smalti import`: the published files become a MODEL, or nothing is written."""

import json
import os
from pathlib import Path

import pytest
import torch

from smalti.core.compute import Compute
from smalti.core.errors import CheckpointError, UsageError
from smalti.core.files import sha256
from smalti.flags import parse
from smalti.runs.import_model import ImportModel, main
from smalti.runs.tokenizers import load_dalle
from smalti.tokenizers.dalle import DallE
from tests.contracts import check_tokenizer
from tests.small_runs import pictures, pretrain, result, weights
from tests.weights.published import Reduced, pickled, publish

SMALL = DallE(vocab_size=16, width=8, depth=1, code_width=4)
CPU = Compute(torch.device("cpu"), torch.float32)


def arguments(files: tuple[str, str], out: Path) -> ImportModel:
    """As the command line would read them."""
    return parse(ImportModel, None, [*files, "--out", str(out)], "import")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_imported_is_what_was_published(zipped: bool, tmp_path: Path) -> None:
    tokenizer = SMALL.build(seed=3)
    files = publish(tokenizer, tmp_path, zipped)
    result = main(arguments(files, tmp_path / "model"))
    digests = {name: sha256((tmp_path / name).read_bytes()) for name in ("encoder.pkl", "decoder.pkl")}
    assert result["parameters"] == sum(p.numel() for p in tokenizer.parameters())
    assert result["sources"] == digests
    assert result["tokenizer"]["kind"] == "DallE"
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "MANIFEST.json",
    }
    assert json.loads((tmp_path / "model" / "config.json").read_text())["sources"] == digests

    loaded = load_dalle(str(tmp_path / "model"), CPU)
    assert loaded.config == SMALL
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    pictures = torch.randint(256, (2, 3, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.logits(pictures), tokenizer.logits(pictures))
    check_tokenizer(loaded, pictures)


def test_nothing_is_overwritten_and_nothing_is_left_behind(tmp_path: Path) -> None:
    files = publish(SMALL.build(), tmp_path)
    with pytest.raises(UsageError, match=r"is not empty; an import never overwrites; choose another --out"):
        main(ImportModel(files, str(tmp_path)))
    with pytest.raises(UsageError, match="no folder to write; use --out MODEL"):
        ImportModel(files)
    canary = tmp_path / "canary"
    (tmp_path / "decoder.pkl").write_bytes(pickled(Reduced(os.system, f"touch {canary}")))
    refusal = rf"decoder.pkl asks for {os.system.__module__}.system; this is no file of weights; nothing was run"
    with pytest.raises(CheckpointError, match=refusal):
        main(ImportModel(files, str(tmp_path / "model")))
    assert not canary.exists()
    assert not (tmp_path / "model").exists()


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "model"
    main(ImportModel(publish(SMALL.build(), tmp_path), str(out)))
    weights = bytearray((out / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (out / "model.safetensors").write_bytes(weights)
    refusal = r"no usable tokenizer in .*; a file of it is missing or damaged; import it again"
    for folder in (out, tmp_path):
        with pytest.raises(CheckpointError, match=refusal):
            load_dalle(str(folder), CPU)


def test_an_imported_tokenizer_serves_both_verbs_that_need_one(tmp_path: Path) -> None:
    """Stride 8 on patches of 4: the token view is larger than the patch view."""
    photos, model = pictures(tmp_path / "photos"), tmp_path / "model"
    main(ImportModel(publish(SMALL.build(seed=3), tmp_path), str(model)))
    assert pretrain(photos, model, tmp_path / "run", 2, "--token-cache", str(tmp_path / "cache")) == 0
    assert result(tmp_path / "run")["steps"] == 2
    again = pretrain(photos, model, tmp_path / "again", 2, "--token-cache", str(tmp_path / "cache"))
    assert again == 0
    assert weights(tmp_path / "again") == weights(tmp_path / "run"), "cached tokens are live tokens"
