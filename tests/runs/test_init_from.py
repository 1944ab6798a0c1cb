"""`smalti pretrain --init-from`: where weights come from, what is refused, and whole runs, interrupted and not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from smalti.cli import main
from smalti.core.errors import CheckpointError
from smalti.models import vit
from smalti.models.vit import ViT
from smalti.runs.folder import holds_run, is_run
from smalti.weights.read import read_source
from tests.other_names import as_huggingface, as_released, as_timm_vit, drawn, huggingface_config
from tests.small_runs import (
    interrupted_before,
    metrics,
    newest_checkpoint,
    pictures,
    pretrain,
    result,
    train_tokenizer,
    weights,
)

SMALL = ViT(img_size=(16, 16), patch_size=4, embed_dim=16, depth=2, num_heads=2)
ACCEPT = "--accept-tokenizer"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, two tokenizers and a pretraining run."""
    made = tmp_path_factory.mktemp("init")
    photos = pictures(made / "photos")
    assert train_tokenizer(photos, made / "tokenizer", 4) == 0
    assert train_tokenizer(photos, made / "another", 4, "--seed", "1") == 0
    assert pretrain(photos, made / "tokenizer", made / "backbone", 4, ACCEPT) == 0
    return made


def start(root: Path, out: Path, source: Path | str, *flags: str, tokenizer: str = "tokenizer", steps: int = 1) -> int:
    given = (ACCEPT, "--init-from", str(source), *flags)
    return pretrain(root / "photos", root / tokenizer, out, steps, *given)


def model_of(run: Path) -> dict[str, Tensor]:
    return load_file(newest_checkpoint(run) / "model.safetensors")


def raw_of(run: Path) -> dict[str, Tensor]:
    return load((newest_checkpoint(run) / "state.safetensors").read_bytes())


def line_of(capsys: pytest.CaptureFixture[str], source: Path) -> str:
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith(f"from {source}: "))


def test_a_run_goes_on_from_another_run_with_its_head(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, run = root / "backbone", tmp_path / "run"
    assert start(root, run, source, "--ema-decay", "0.9", "--optimiser.lr", "1e-7", "--optimiser.end-lr", "1e-7") == 0
    there, here = model_of(source), model_of(run)
    for name, value in there.items():
        torch.testing.assert_close(here[name], value, rtol=0, atol=1e-6)  # one step of 1e-7, also of the average
    assert line_of(capsys, source) == f"from {source}: 30 tensors of the backbone, the mask token and the head"
    assert metrics(run)[0]["loss"] < metrics(source)[0]["loss"]


def test_the_head_of_another_tokenizer_is_new(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(root, tmp_path / "run", root / "backbone", tokenizer="another") == 0
    assert line_of(capsys, root / "backbone").endswith("backbone and the mask token; the head is new")


def test_a_head_of_tokens_is_none_of_pixels(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, source in (("one", root / "backbone"), ("other", tmp_path / "one")):
        flags = ["--init-from", str(source), "--target", "pixels"]
        assert pretrain(root / "photos", "", tmp_path / name, 1, *flags) == 0
        assert line_of(capsys, source).endswith("the head is new" if name == "one" else "the mask token and the head")
    assert start(root, tmp_path / "tokens", tmp_path / "one") == 0
    assert line_of(capsys, tmp_path / "one").endswith("; the head is new")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "vit.pth"])
def test_weights_of_timm_in_a_folder_or_a_file(root: Path, tmp_path: Path, name: str) -> None:
    there, run = drawn(SMALL), tmp_path / "run"
    kept = as_timm_vit(there)
    if name.endswith("safetensors"):
        save_file(kept, tmp_path / name)
    else:
        torch.save({"model": {n: value.half() for n, value in kept.items()}}, tmp_path / name)
    source = tmp_path / name if name == "vit.pth" else tmp_path
    assert start(root, run, source, "--freeze-backbone-steps", "1") == 0
    here = model_of(run)
    for ours, value in there.backbone.state_dict().items():
        torch.testing.assert_close(here[f"backbone.{ours}"], value, rtol=1e-3, atol=1e-3)


def test_a_masked_image_model_of_transformers(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    released = vit.released(SMALL)
    there = drawn(released)
    head = {"lm_head.weight": torch.ones(16, 16), "lm_head.bias": torch.ones(16)}
    save_file(as_huggingface(there, "", **head), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(released, "beit")))
    flags = ["--backbone.positions", "shared_relative", "--backbone.init-values", "0.1", "--backbone.no-k-bias"]
    flags += ["--backbone.pos-init", "uniform", "--freeze-backbone-steps", "1"]
    assert start(root, tmp_path / "run", tmp_path, *flags) == 0
    assert line_of(capsys, tmp_path).endswith("tensors of the backbone and the head; the mask token is new")
    for name, value in there.backbone.state_dict().items():
        assert torch.equal(model_of(tmp_path / "run")[f"backbone.{name}"], value)


@pytest.mark.parametrize("stop", [2, 4])
def test_a_frozen_warm_up_interrupted_on_either_side_of_its_end_goes_on_as_if_nothing_had_happened(
    root: Path, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--freeze-backbone-steps", "3", "--plan.save-every", "1"]
    source, whole, run = tmp_path / "vit.safetensors", tmp_path / "whole", tmp_path / "run"
    save_file(as_timm_vit(drawn(SMALL)), source)
    assert start(root, whole, source, *flags, steps=6) == 0
    with interrupted_before(stop, monkeypatch):
        assert start(root, run, source, *flags, steps=6) == 130
    moments = {name for name in raw_of(run) if name.startswith("exp_avg.")}
    assert ("exp_avg.backbone.cls_token" in moments) == (stop > 3)
    assert "exp_avg.mask_token" in moments
    assert torch.equal(model_of(run)["backbone.cls_token"], load_file(source)["cls_token"]) == (stop <= 3)
    source.unlink()  # what goes on has its weights
    capsys.readouterr()
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert f"from {source}" not in capsys.readouterr().err
    assert weights(run) == weights(whole)
    assert metrics(run) == metrics(whole)
    assert result(run) == result(whole)


def test_another_backbone_is_refused_before_anything_is_written(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(root, tmp_path / "run", root / "backbone", "--backbone.depth", "3") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {root}/backbone has depth 2, and the backbone has depth 3; use --backbone.depth 2"
    )
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_is_no_start(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(root, tmp_path / "run", root / "tokenizer") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {root}/tokenizer is a run of train-tokenizer; a run of pretrain is needed here"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--init-from", "x", "--freeze-backbone-steps", "-1"], "freeze_backbone_steps is -1; use at least 0"),
        (
            ["--freeze-backbone-steps", "5"],
            "freeze_backbone_steps is 5, and the backbone starts from nothing; use --init-from MODEL too",
        ),
    ],
)
def test_a_warm_up_that_makes_no_sense(
    flags: list[str], message: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(root / "photos", root / "tokenizer", tmp_path / "run", 1, *flags) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"


def refused(place: Path) -> str:
    with pytest.raises(CheckpointError) as refusal:
        read_source(str(place))
    return str(refusal.value).replace(str(place), "PLACE")


def test_places_without_weights(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == (
        "there is no PLACE; nothing is fetched from a hub; give a folder or a file that is here"
    )
    assert refused(tmp_path) == (
        "no weights in PLACE; neither model.safetensors nor pytorch_model.bin is there; save the model there in one"
        " file"
    )
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 20)
    assert refused(tmp_path / "broken.safetensors").startswith("PLACE cannot be read; ")
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg.safetensors")
    assert refused(tmp_path / "vgg.safetensors") == (
        "PLACE has names of neither timm nor transformers; it has no blocks.0 and no encoder.layer.0, but"
        " features.0.weight; give a ViT or BEiT of timm or transformers, or a pretraining run"
    )


def test_a_file_of_torch_with_more_than_tensors_in_it(tmp_path: Path) -> None:
    torch.save({"model": as_released(drawn(SMALL)), "args": ViT()}, tmp_path / "checkpoint.pth")
    assert refused(tmp_path / "checkpoint.pth") == (
        "checkpoint.pth asks for smalti.models.vit.ViT; weights need nothing of the kind; nothing was run; save its"
        " state dict with safetensors.torch.save_file, where you trust it"
    )


def test_weights_of_transformers_need_a_description_that_fits(tmp_path: Path) -> None:
    weights = as_huggingface(drawn(SMALL), "vit.")
    save_file(weights, tmp_path / "model.safetensors")
    assert refused(tmp_path) == (
        "no readable PLACE/config.json; weights of transformers do not describe themselves; put it beside them"
    )
    config = tmp_path / "config.json"
    config.write_text(json.dumps(huggingface_config(SMALL, "dinov2")))
    assert refused(tmp_path) == "PLACE: config.json is of a model_type 'dinov2'; beit and vit are known"
    config.write_text(json.dumps(huggingface_config(SMALL, "vit")))
    del weights["vit.encoder.layer.1.attention.attention.key.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    assert refused(tmp_path) == "PLACE has no backbone.blocks.1.attn.key.weight; it is not whole"


def test_no_start_is_not_the_run_in_the_current_directory(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root / "tokenizer")
    assert not is_run("")
    assert not holds_run("")
    assert pretrain(root / "photos", "", tmp_path / "run", 1, "--target", "pixels") == 0
