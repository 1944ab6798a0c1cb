"""`smalti import` of backbones, masked image models and classifiers under the names of other programs."""

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from smalti.cli import main
from smalti.core.errors import CheckpointError, UsageError
from smalti.exporting import huggingface, timm, unilm
from smalti.exporting.loaded_model import LoadedModel
from smalti.models.classifier import ImageClassifier
from smalti.runs.import_model import ImportModel
from smalti.runs.import_model import main as import_model
from smalti.runs.models import load_with_preprocessing
from smalti.weights.names import to_released, to_timm
from smalti.weights.read import read_source
from tests.exporting.networks import CPU, PAPER, RELEASED, VARIANTS, backbone, classifier, masked
from tests.small_runs import pictures, pretrain, train_tokenizer

IMAGES = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def saved(weights: dict[str, Tensor], path: Path) -> str:
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, path)
    return str(path)


def imported(place: str, out: Path, **settings: Any) -> tuple[dict[str, Any], LoadedModel]:
    about = import_model(ImportModel((place,), str(out), **settings))
    return about, load_with_preprocessing(str(out), CPU)


def same_features(one: LoadedModel, other: LoadedModel) -> None:
    images = IMAGES.repeat(1, 1, 16, 16)[..., : one.preprocessing.size[0], : one.preprocessing.size[1]]
    images = images[:, : one.preprocessing.channels]
    torch.testing.assert_close(other.backbone(images).patches, one.backbone(images).patches, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "blocks", "scaled", "grey"])
def test_a_backbone_of_timm(variant: str, tmp_path: Path) -> None:
    loaded = backbone(replace(VARIANTS[variant], mean=(0.5,), std=(0.5,)))
    timm.write(loaded, tmp_path)
    heads = loaded.backbone.config.num_heads
    about, again = imported(str(tmp_path / "model.safetensors"), tmp_path / "model", num_heads=heads)
    assert (about["kind"], about["left_out"]) == ("backbone", [])
    same_features(loaded, again)


@pytest.mark.parametrize("variant", ["paper", "released", "shared"])
def test_a_pretrained_model_of_the_released_code_with_its_head(variant: str, tmp_path: Path) -> None:
    loaded = masked(replace(VARIANTS[variant], mean=(0.5,), std=(0.5,)))
    unilm.write(loaded, tmp_path)
    torch.save({"model": load_file(tmp_path / "model.safetensors")}, tmp_path / "beit.pth")
    about, again = imported(str(tmp_path / "beit.pth"), tmp_path / "model", num_heads=4)
    assert about["kind"] == "masked image model"
    same_features(loaded, again)
    mask = torch.arange(16).expand(2, -1) % 2 == 1
    index = mask.nonzero()[:, 1].view(2, 8)
    torch.testing.assert_close(again.network(IMAGES, mask, index), loaded.network(IMAGES, mask, index))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_fine_tuned_classifier(pooling: Any, tmp_path: Path) -> None:
    loaded = classifier(replace(PAPER, mean=(0.5,), std=(0.5,)), pooling)
    place = saved(to_timm(loaded.weights(), layer_scale_modules=True), tmp_path / "tuned.safetensors")
    about, again = imported(place, tmp_path / "model", num_heads=4)
    assert (about["kind"], again.classes) == ("classifier", ("0", "1", "2"))
    assert isinstance(again.network, ImageClassifier)
    torch.testing.assert_close(again.network(IMAGES), loaded.network(IMAGES))


@pytest.mark.parametrize("make", [backbone, masked, classifier])
def test_a_folder_of_transformers_says_heads_and_pixels(make: Any, tmp_path: Path) -> None:
    loaded = make(RELEASED)
    (tmp_path / "beit").mkdir()
    huggingface.write(loaded, tmp_path / "beit")
    about, again = imported(str(tmp_path / "beit"), tmp_path / "model")
    assert about["kind"] == loaded.kind
    assert again.preprocessing == loaded.preprocessing
    same_features(loaded, again)


def test_mae_is_its_encoder_and_what_is_left_out_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = backbone(replace(PAPER, mean=(0.5,), std=(0.5,)))
    weights = to_timm(loaded.weights(), layer_scale_modules=True)
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 32)}
    place = saved(weights | decoder, tmp_path / "mae.safetensors")
    about, again = imported(place, tmp_path / "model", num_heads=4)
    assert sorted(about["left_out"]) == ["decoder_embed.weight", "mask_token"]
    assert "left out: decoder_embed.weight" in capsys.readouterr().out
    same_features(loaded, again)


def test_the_encoder_is_found_below_a_prefix(tmp_path: Path) -> None:
    """As lightly's MAE has it in a checkpoint of its module."""
    loaded = backbone(replace(PAPER, mean=(0.5,), std=(0.5,)))
    bare = to_timm(loaded.weights(), layer_scale_modules=True)
    weights = {f"backbone.vit.{name}": value for name, value in bare.items()}
    others = {"backbone.mask_token": torch.zeros(1, 1, 32), "decoder.decoder_pred.weight": torch.zeros(2, 2)}
    about, again = imported(saved(weights | others, tmp_path / "mae.safetensors"), tmp_path / "model", num_heads=4)
    assert sorted(about["left_out"]) == sorted(others)
    same_features(loaded, again)


def beside_weights() -> dict[str, Any]:
    """What training programs of torch store beside weights."""
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    arguments = argparse.Namespace(lr=1e-3, out=Path("runs"), betas=(0.9, 0.95), seen=np.float64(3))
    return {
        "optimizer": optimizer.state_dict(),
        "args": arguments,
        "rng": torch.get_rng_state(),
        "numpy": np.random.default_rng(0).random(3),
        "size": torch.Size([1]),
        "dtype": torch.float16,
        "more": defaultdict(list, {"a": [1]}),
        "epoch": 3,
    }


@pytest.mark.parametrize("inside", ["model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize(
    ("prefix", "compiled"), [("", False), ("module.", True), ("encoder.", False), ("model.module.encoder.", False)]
)
def test_a_training_checkpoint_of_ones_own(
    inside: str, prefix: str, compiled: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of MAE, with arguments, an optimiser and the prefixes of DistributedDataParallel, Lightning and the compiler."""
    loaded = backbone(replace(PAPER, mean=(0.5,), std=(0.5,)))
    weights = to_timm(loaded.weights(), layer_scale_modules=True)
    weights |= {"decoder_blocks.0.norm1.weight": torch.ones(8), "mask_token": torch.zeros(1, 1, 8)}
    named = {
        prefix + (name.replace("blocks.0.", "blocks.0._orig_mod.") if compiled else name): weights[name]
        for name in weights
    }
    torch.save({inside: named} | beside_weights(), tmp_path / "checkpoint.pth")
    about, again = imported(str(tmp_path / "checkpoint.pth"), tmp_path / "model", num_heads=4)
    same_features(loaded, again)
    assert {name.removeprefix(prefix).replace("_orig_mod.", "") for name in about["left_out"]} == {
        "decoder_blocks.0.norm1.weight",
        "mask_token",
    }
    said = capsys.readouterr().err
    assert "checkpoint.pth: beside the weights, left aside: optimizer, args, rng, numpy, size, dtype and 2 more" in said
    assert (f"names are read without their prefix {prefix}" in said) == bool(prefix)


def test_a_decoder_beside_the_encoder_is_dropped_and_two_encoders_are_a_question(tmp_path: Path) -> None:
    loaded = backbone(replace(PAPER, mean=(0.5,), std=(0.5,)))
    weights = to_timm(loaded.weights(), layer_scale_modules=True)
    both = {f"{part}.{name}": value for part in ("encoder", "decoder") for name, value in weights.items()}
    about, again = imported(saved(both, tmp_path / "both.safetensors"), tmp_path / "model", num_heads=4)
    assert all(name.startswith("decoder.") for name in about["left_out"])
    assert len(about["left_out"]) == len(weights)
    same_features(loaded, again)
    two = {f"{part}.{name}": value for part in ("student", "teacher") for name, value in weights.items()}
    with pytest.raises(CheckpointError, match=r"there are 2 encoders, below student\. and teacher\.; save the one"):
        imported(saved(two, tmp_path / "two.safetensors"), tmp_path / "none", num_heads=4)


def test_a_prefix_before_the_names_of_transformers(tmp_path: Path) -> None:
    loaded = classifier(RELEASED)
    huggingface.write(loaded, make_folder(tmp_path / "beit"))
    named = load_file(tmp_path / "beit" / "model.safetensors")
    saved({f"module.{name}": value for name, value in named.items()}, tmp_path / "beit" / "model.safetensors")
    source = read_source(str(tmp_path / "beit"))
    assert set(source.classifier) == {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}
    assert source.vit().embed_dim == 32


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


@pytest.mark.parametrize("positions", ["absolute", "block_relative"])
def test_images_that_are_not_square(positions: Any, tmp_path: Path) -> None:
    """4 x 9 patches, of which there are as many as of 6 x 6; 2 x 7, of which no square has."""
    for size in ((16, 36), (8, 28)):
        loaded = backbone(replace(PAPER, img_size=size, positions=positions, mean=(0.5,), std=(0.5,)))
        timm.write(loaded, make_folder(tmp_path / f"timm-{size[0]}"))
        _, beside = imported(str(tmp_path / f"timm-{size[0]}"), tmp_path / f"beside-{size[0]}", num_heads=4)
        same_features(loaded, beside)
        (tmp_path / f"timm-{size[0]}" / "config.json").unlink()
        _, given = imported(str(tmp_path / f"timm-{size[0]}"), tmp_path / f"{size[0]}", num_heads=4, img_size=size)
        same_features(loaded, given)
    with pytest.raises(UsageError, match=r"a grid that is not square; .* set --img-size to the height and width it"):
        imported(str(tmp_path / "timm-8"), tmp_path / "none", num_heads=4)
    for size in ((12, 28), (9, 28), (-8, -28)):
        with pytest.raises(UsageError, match=r"--img-size|img_size|no positions for images of"):
            imported(str(tmp_path / "timm-8"), tmp_path / "none", num_heads=4, img_size=size)


def test_normalisation_is_that_beside_the_weights_or_as_given(tmp_path: Path) -> None:
    loaded = backbone(PAPER)
    timm.write(loaded, tmp_path)
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


def _changed(folder: Path, file: str, **values: Any) -> None:
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))


def test_a_folder_of_timm_is_not_taken_for_one_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    loaded = backbone(replace(VARIANTS["paper"], mean=(0.5,), std=(0.5,)))
    timm.write(loaded, make_folder(tmp_path / "timm"))
    heads = loaded.backbone.config.num_heads
    about, again = imported(str(tmp_path / "timm"), tmp_path / "model", num_heads=heads)
    assert set(about["certificate"]["differences"]) == {"cls", "patches"}
    same_features(loaded, again)


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


HOSTILE: list[tuple[str, Any]] = [
    ("image_size", 10**12),
    ("image_size", 10**400),
    ("image_size", "16"),
    ("num_attention_heads", 0),
    ("hidden_size", 10**6),
    ("hidden_size", None),
    ("num_hidden_layers", 10**9),
    ("intermediate_size", -1),
    ("num_channels", 10**9),
    ("layer_norm_eps", "x"),
]


@pytest.mark.parametrize(("name", "value"), HOSTILE)
def test_a_config_of_another_network_is_an_error_before_memory_is_taken(name: str, value: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    huggingface.write(backbone(PAPER), make_folder(tmp_path / "theirs"))
    _changed(tmp_path / "theirs", "config.json", **{name: value})
    with pytest.raises(CheckpointError):
        import_model(ImportModel((str(tmp_path / "theirs"),), str(tmp_path / "model")))
    assert not (tmp_path / "model").exists()


def test_what_a_config_asks_to_run_fetch_or_read_is_ignored(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    theirs = make_folder(tmp_path / "theirs")
    huggingface.write(backbone(PAPER), theirs)
    (theirs / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass Evil: pass\n")
    evil: dict[str, Any] = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}, "dtype": "evil"}
    evil |= {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel", "id2label": 3}
    _changed(theirs, "config.json", **evil, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    (theirs / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    about, _ = imported(str(theirs), tmp_path / "model")
    assert "features of transformers" in about["certificate"]["differences"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patch_embed.proj.weight", (32, 48)),
        ("patch_embed.proj.weight", (0, 3, 4, 4)),
        ("patch_embed.proj.weight", (64000, 3, 4, 4)),
        ("blocks.0.mlp.fc1.weight", ()),
        ("blocks.0.attn.qkv.bias", ()),
        ("pos_embed", (17,)),
        ("blocks.0.attn.relative_position_bias_table", (7,)),
        ("head.weight", ()),
        ("head.weight", (0, 32)),
    ],
)
def test_absurd_shapes_are_an_error(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    weights = to_timm(backbone(PAPER).network.state_dict(), layer_scale_modules=True) | {name: torch.zeros(shape)}
    with pytest.raises(CheckpointError, match=f"{name}|cls_token"):
        import_model(ImportModel((saved(weights, tmp_path / "w.safetensors"),), str(tmp_path / "m"), num_heads=4))


@pytest.mark.parametrize("value", [float("nan"), 1j])
def test_weights_that_are_no_real_numbers_are_an_error(value: complex, tmp_path: Path) -> None:
    weights = to_timm(backbone(PAPER).network.state_dict(), layer_scale_modules=True)
    weights["norm.weight"] = torch.full_like(weights["norm.weight"], 1) * value
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        import_model(ImportModel((saved(weights, tmp_path / "w.safetensors"),), str(tmp_path / "m"), num_heads=4))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200000,
        '{"pretrained_cfg": {"input_size": [3, "4", 4]}}',
        '{"pretrained_cfg": {"mean": [NaN], "std": [1]}}',
        '{"model_type": [1]}',
    ],
)
def test_an_absurd_config_beside_weights_of_timm_tells_nothing(text: str, tmp_path: Path) -> None:
    timm.write(backbone(PAPER), make_folder(tmp_path / "timm"))
    (tmp_path / "timm" / "config.json").write_text(text)
    _, again = imported(str(tmp_path / "timm"), tmp_path / "model", num_heads=PAPER.num_heads)
    assert again.preprocessing.mean == (0.5, 0.5, 0.5)


def test_a_folder_of_another_program_is_no_model_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    huggingface.write(backbone(PAPER), tmp_path)
    assert main(["info", str(tmp_path)]) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"it holds weights of another program; smalti import {tmp_path} --out MODEL makes it one")


@pytest.mark.parametrize("name", ["a.png", "a.bin"])
def test_an_image_is_called_one(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    with pytest.raises(CheckpointError, match=r"it looks like an image, not like weights; nothing was run"):
        import_model(ImportModel((str(tmp_path / name),), str(tmp_path / "out")))


def test_a_model_is_not_imported(tmp_path: Path) -> None:
    place = saved(to_timm(backbone(PAPER).weights(), layer_scale_modules=True), tmp_path / "vit.safetensors")
    model = tmp_path / "model"
    import_model(ImportModel((place,), str(model), num_heads=PAPER.num_heads))
    with pytest.raises(UsageError, match=r"model is a MODEL already; smalti wrote it; give it as MODEL or --init"):
        import_model(ImportModel((str(model),), str(tmp_path / "again")))
    about = json.loads((model / "config.json").read_text())
    about["config"]["backbone"]["std"] = [0.0]
    (model / "config.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match=r"std is \(0\.0,\); pixels are divided by it"):
        load_with_preprocessing(str(model), CPU)
