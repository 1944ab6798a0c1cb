"""`smalti import` of backbones, masked image models and classifiers under the names of other programs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from smalti.cli import main
from smalti.core.errors import CheckpointError, UsageError
from smalti.exporting import huggingface, timm, unilm
from smalti.exporting.subject import Subject
from smalti.models.classifier import ImageClassifier
from smalti.runs.import_model import ImportModel
from smalti.runs.import_model import main as import_model
from smalti.runs.models import load_subject
from smalti.weights.names import to_released, to_timm
from tests.exporting.networks import CPU, PAPER, RELEASED, VARIANTS, backbone, classifier, masked
from tests.small_runs import pictures, pretrain, train_tokenizer

IMAGES = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def saved(weights: dict[str, Tensor], path: Path) -> str:
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, path)
    return str(path)


def imported(place: str, out: Path, **settings: Any) -> tuple[dict[str, Any], Subject]:
    about = import_model(ImportModel((place,), str(out), **settings))
    return about, load_subject(str(out), CPU)


def same_features(one: Subject, other: Subject) -> None:
    images = IMAGES.repeat(1, 1, 16, 16)[..., : one.preprocessing.size[0], : one.preprocessing.size[1]]
    images = images[:, : one.preprocessing.channels]
    torch.testing.assert_close(other.backbone(images).patches, one.backbone(images).patches, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "blocks", "scaled", "grey"])
def test_a_backbone_of_timm(variant: str, tmp_path: Path) -> None:
    subject = backbone(replace(VARIANTS[variant], mean=(0.5,), std=(0.5,)))
    timm.write(subject, tmp_path)
    heads = subject.backbone.config.num_heads
    about, again = imported(str(tmp_path / "model.safetensors"), tmp_path / "model", num_heads=heads)
    assert (about["kind"], about["left_out"]) == ("backbone", [])
    same_features(subject, again)


@pytest.mark.parametrize("variant", ["paper", "released", "shared"])
def test_a_pretrained_model_of_the_released_code_with_its_head(variant: str, tmp_path: Path) -> None:
    subject = masked(replace(VARIANTS[variant], mean=(0.5,), std=(0.5,)))
    unilm.write(subject, tmp_path)
    torch.save({"model": load_file(tmp_path / "model.safetensors")}, tmp_path / "beit.pth")
    about, again = imported(str(tmp_path / "beit.pth"), tmp_path / "model", num_heads=4)
    assert about["kind"] == "masked image model"
    same_features(subject, again)
    mask = torch.arange(16).expand(2, -1) % 2 == 1
    index = mask.nonzero()[:, 1].view(2, 8)
    torch.testing.assert_close(again.network(IMAGES, mask, index), subject.network(IMAGES, mask, index))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_fine_tuned_classifier(pooling: Any, tmp_path: Path) -> None:
    subject = classifier(replace(PAPER, mean=(0.5,), std=(0.5,)), pooling)
    place = saved(to_timm(subject.weights(), layer_scale_modules=True), tmp_path / "tuned.safetensors")
    about, again = imported(place, tmp_path / "model", num_heads=4)
    assert (about["kind"], again.classes) == ("classifier", ("0", "1", "2"))
    assert isinstance(again.network, ImageClassifier)
    torch.testing.assert_close(again.network(IMAGES), subject.network(IMAGES))


@pytest.mark.parametrize("make", [backbone, masked, classifier])
def test_a_folder_of_transformers_says_heads_and_pixels(make: Any, tmp_path: Path) -> None:
    subject = make(RELEASED)
    (tmp_path / "beit").mkdir()
    huggingface.write(subject, tmp_path / "beit")
    about, again = imported(str(tmp_path / "beit"), tmp_path / "model")
    assert about["kind"] == subject.kind
    assert again.preprocessing == subject.preprocessing
    same_features(subject, again)


def test_mae_is_its_encoder_and_what_is_left_out_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = backbone(replace(PAPER, mean=(0.5,), std=(0.5,)))
    weights = to_timm(subject.weights(), layer_scale_modules=True)
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 32)}
    place = saved(weights | decoder, tmp_path / "mae.safetensors")
    about, again = imported(place, tmp_path / "model", num_heads=4)
    assert sorted(about["left_out"]) == ["decoder_embed.weight", "mask_token"]
    assert "left out: decoder_embed.weight" in capsys.readouterr().out
    same_features(subject, again)


def test_the_encoder_is_found_below_a_prefix(tmp_path: Path) -> None:
    """As lightly's MAE has it in a checkpoint of its module."""
    subject = backbone(replace(PAPER, mean=(0.5,), std=(0.5,)))
    bare = to_timm(subject.weights(), layer_scale_modules=True)
    weights = {f"backbone.vit.{name}": value for name, value in bare.items()}
    others = {"backbone.mask_token": torch.zeros(1, 1, 32), "decoder.decoder_pred.weight": torch.zeros(2, 2)}
    about, again = imported(saved(weights | others, tmp_path / "mae.safetensors"), tmp_path / "model", num_heads=4)
    assert sorted(about["left_out"]) == sorted(others)
    same_features(subject, again)


def test_unknown_weights_are_named_and_missing_ones_are_refused(tmp_path: Path) -> None:
    weights = to_timm(backbone(PAPER).weights(), layer_scale_modules=True)
    place = saved(weights | {"rope.freqs": torch.zeros(4)}, tmp_path / "odd.safetensors")
    assert imported(place, tmp_path / "model", num_heads=4)[0]["left_out"] == ["backbone.rope.freqs"]
    cut = {name: value for name, value in weights.items() if name != "blocks.1.attn.proj.weight"}
    with pytest.raises(CheckpointError, match=r"has no blocks\.1\.attn\.proj\.weight; it is not whole"):
        imported(saved(cut, tmp_path / "cut.safetensors"), tmp_path / "none", num_heads=4)
    assert not (tmp_path / "none").exists()


def test_heads_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    place = saved(to_timm(backbone(PAPER).weights(), layer_scale_modules=True), tmp_path / "vit.safetensors")
    with pytest.raises(UsageError, match=r"the number of heads of .* is unknown; .* use --num-heads"):
        imported(place, tmp_path / "model")


def test_normalisation_is_that_beside_the_weights_or_as_given(tmp_path: Path) -> None:
    subject = backbone(PAPER)
    timm.write(subject, tmp_path)
    place = str(tmp_path / "model.safetensors")
    assert imported(place, tmp_path / "beside", num_heads=4)[1].preprocessing.mean == (0.4, 0.5, 0.6)
    about = imported(place, tmp_path / "given", num_heads=4, normalisation="imagenet")[1]
    assert about.preprocessing.mean == (0.485, 0.456, 0.406)


def test_the_command_line_imports_and_other_verbs_take_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = to_released(masked(replace(PAPER, mean=(0.5,), std=(0.5,))).weights())
    place, model = saved(weights, tmp_path / "beit.safetensors"), tmp_path / "model"
    assert main(["import", place, "--num-heads", "4", "--out", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kind"] == "masked image model"
    photos = pictures(tmp_path / "photos")
    assert train_tokenizer(photos, tmp_path / "tokenizer") == 0
    vit = ["--backbone.embed-dim", "32", "--backbone.depth", "3", "--backbone.num-heads", "4"]
    init = ["--init-from", str(model), *vit]
    assert pretrain(photos, tmp_path / "tokenizer", tmp_path / "run", 2, *init) == 0
    assert main(["info", str(model)]) == 0
    assert "imported from: beit.safetensors" in capsys.readouterr().out
