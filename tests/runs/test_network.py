"""`smalti.load`: what is in a run folder, and its features, which are those that `smalti evaluate` measures."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.cli import main
from smalti.core.compute import Compute
from smalti.core.errors import CheckpointError, DataError, UsageError
from smalti.core.log import Log
from smalti.data.load import Data
from smalti.data.reading import centre_crop, square
from smalti.evaluation.features import POOLINGS, extract
from smalti.models.classifier import ImageClassifier
from smalti.models.mim import MaskedImageModel
from smalti.models.segmenter import Segmenter
from smalti.models.vit import ViT
from smalti.runs.export import Export
from smalti.runs.export import main as export
from smalti.runs.network import Network, load, load_network, load_tokenizer
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.training.checkpoint import read_checkpoint

CPU = Compute(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def network(runs: Path) -> Network:
    return load_network(runs / "beit", "cpu")


def test_a_notebook_shows_what_was_loaded(runs: Path) -> None:
    network = load_network(runs / "classes", "cpu")
    html = replace(network, classes=("<script>", "down"))._repr_html_()
    for text in (
        "ImageClassifier, on cpu",
        "16 x 16 pixels",
        "4 x 4 of 4 x 4 pixels",
        "2 of width 16",
        "&lt;script&gt;, down",
    ):
        assert text in html
    assert "<script" not in html
    tokenizer = load_tokenizer(runs / "tokenizer", "cpu")._repr_html_()
    assert "DVAE, an image tokenizer" in tokenizer
    assert "16 visual tokens, one for 4 x 4 pixels" in tokenizer


def files(runs: Path) -> list[Path]:
    return sorted((runs / "photos").rglob("*.png"))


@pytest.mark.parametrize(
    ("run", "kind", "layer", "classes"),
    [
        ("beit", MaskedImageModel, 2, ()),
        ("classes", ImageClassifier, 2, ("across", "down")),
        ("scenes", Segmenter, 2, None),
    ],
)
def test_a_network_is_ready_for_use(
    run: str, kind: type, layer: int, classes: tuple[str, ...] | None, runs: Path
) -> None:
    found = load(str(runs / run), "cpu")
    assert isinstance(found, Network)
    assert isinstance(found.module, kind)
    assert not any(module.training for module in found.module.modules())
    assert not any(parameter.requires_grad for parameter in found.module.parameters())
    assert found.backbone is found.module.backbone
    assert found.layer == layer
    assert classes is None or found.classes == classes
    assert found.features(files(runs)[:3]).shape == (3, 16)


@pytest.mark.parametrize("run", ["beit", "classes", "tokenizer"])
def test_one_checkpoint_is_a_model(run: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights are those of its step, not the best or the last of the run, which gives it its configuration."""
    newest = sorted((runs / run / "checkpoints").iterdir())[-1]
    mended = shutil.copytree(runs / run, tmp_path / "run") / "checkpoints" / newest.name
    found, whole = load(mended, "cpu"), load(runs / run, "cpu")
    weights = read_checkpoint(mended).model
    module = found if isinstance(found, ImageTokenizer) else found.module
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    if isinstance(whole, Network):
        assert isinstance(found, Network)
        assert (found.layer, found.classes) == (whole.layer, whole.classes)
    assert main(["info", str(mended)]) == 0
    assert main(["export", str(mended), "--to", "bundle", "--out", str(tmp_path / "bundle")]) == 0
    (mended / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=f"damaged: {newest.name}"):
        load(mended, "cpu")
    with pytest.raises(CheckpointError, match="no run folder"):
        load(mended.with_name("step-00000099"), "cpu")
    assert "Traceback" not in capsys.readouterr().err


def test_a_classifier_is_given_what_preprocess_returns(runs: Path) -> None:
    found = load_network(runs / "classes", "cpu")
    assert found.module(found.preprocess(files(runs)[:3])).shape == (3, 2)


@pytest.mark.parametrize(("depth", "layer"), [(1, 1), (2, 2), (4, 3), (6, 4), (12, 8), (24, 16)])
def test_the_default_layer_is_two_thirds_up(
    depth: int, layer: int, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smalti.models.mim import build_mim
    from smalti.runs import network as module

    config = ViT(img_size=(8, 8), patch_size=4, embed_dim=8, depth=depth, num_heads=2)
    monkeypatch.setattr(module, "read_kind", lambda run: "Pretrain")
    monkeypatch.setattr(module, "load_pretrained", lambda run, compute: build_mim(config, 4))
    monkeypatch.setattr(module, "read_config", lambda run, cls: cls())
    assert load_network("run", "cpu").layer == layer


def test_a_tokenizer_encodes_and_decodes(runs: Path, network: Network) -> None:
    found = load(runs / "tokenizer", "cpu")
    assert isinstance(found, ImageTokenizer)
    assert not found.training
    ids = found.encode(network.preprocess(files(runs)[0]))
    assert ids.shape == (1, 4, 4)
    assert found.decode(ids).shape == (1, 3, 16, 16)
    assert torch.equal(load_tokenizer(runs / "tokenizer", "cpu").encode(network.preprocess(files(runs)[0])), ids)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_features_are_those_of_evaluation_bit_for_bit(pooling: str, runs: Path, network: Network) -> None:
    loaded = Data(str(runs / "photos"), side=16).load(Log())
    images = loaded.train
    expected = extract(network.backbone, images, CPU)
    found = network.features(images.images, layer=1, pooling=pooling)  # type: ignore[arg-type]
    assert torch.equal(found, expected[1, pooling])
    assert not found.requires_grad
    assert found.dtype == torch.float32


def test_files_are_preprocessed_as_evaluation_does(runs: Path, network: Network) -> None:
    from smalti.data.datasets.open import open_source
    from smalti.data.load import read_source

    read = read_source(open_source(str(runs / "photos"), 3), Data(side=16), Log())
    assert torch.equal(network.preprocess(files(runs)), read.images)
    expected = extract(network.backbone, read, CPU)[2, "mean"]
    assert (network.features(files(runs)) - expected).abs().max() < 1e-6
    assert (network.features(list(map(str, files(runs)))) - expected).abs().max() < 1e-6
    assert (network.features(files(runs)[4])[0] - expected[4]).abs().max() < 1e-6


def test_pillow_images_are_taken_in_any_mode_and_upright(network: Network, runs: Path, tmp_path: Path) -> None:
    path = files(runs)[0]
    with Image.open(path) as image:
        assert torch.equal(network.preprocess(image), network.preprocess(path))
        turned = image.transpose(Image.Transpose.ROTATE_90)
        exif = image.getexif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        assert torch.equal(network.preprocess([image]), network.preprocess(path))
    clear = Image.new("RGBA", (30, 20), (255, 0, 0, 0))
    assert (network.preprocess([clear, Image.new("L", (9, 9)), Image.new("CMYK", (20, 20))])[0] == 255).all()


def test_tensors_of_another_size_are_cropped_in_the_centre_and_resized(network: Network, runs: Path) -> None:
    with Image.open(files(runs)[0]) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    expected = network.preprocess(files(runs)[0]).float() / 255
    for given in (pixels, pixels.float() / 255):
        found = network.preprocess(given)
        assert found.shape == (1, 3, 16, 16)
        assert (found - expected).abs().max() < 2 / 255
    right = torch.rand(2, 3, 16, 16)
    assert network.preprocess(right) is right


def test_many_files_are_decoded_some_at_a_time(network: Network, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = network.features(files(runs))
    monkeypatch.setattr("smalti.runs.network._CHUNK", 5)
    assert (network.features(files(runs)) - expected).abs().max() < 1e-6


@pytest.mark.parametrize(("height", "width"), [(30, 40), (40, 30), (31, 17), (5, 5)])
def test_the_centre_in_another_shape(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    assert centre_crop(pixels, (8, 12)).shape == (8, 12, 3)
    assert np.array_equal(centre_crop(pixels, (8, 8)), square(pixels, 8))
    tall, wide = min(height, round(width * 2 / 3)), min(width, round(height * 3 / 2))
    top, left = (height - tall) // 2, (width - wide) // 2
    box = (left, top, left + wide, top + tall)
    expected = Image.fromarray(pixels).resize((12, 8), Image.Resampling.BICUBIC, box=box)
    assert np.array_equal(centre_crop(pixels, (8, 12)), np.asarray(expected))


def test_what_cannot_be_done_is_said_in_one_line(network: Network, runs: Path, tmp_path: Path) -> None:
    path = files(runs)[0]
    with pytest.raises(UsageError, match=r"^layer 3 of a network of 2 blocks; use 1 to 2$"):
        network.features(path, layer=3)
    with pytest.raises(UsageError, match=r"^pooling is 'max'; there are: cls, mean, both, 2x2$"):
        network.features(path, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^images of shape 2x1x16x16; give B x 3 x H x W$"):
        network.features(torch.zeros(2, 1, 16, 16))
    with pytest.raises(UsageError, match=r"^images of type torch.int64; give uint8"):
        network.features(torch.zeros(2, 3, 16, 16, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"^no images given$"):
        network.features([])
    with pytest.raises(DataError, match="No such file"):
        network.features(tmp_path / "none.jpg")
    with pytest.raises(CheckpointError, match="is no run folder"):
        load(tmp_path / "none")
    with pytest.raises(UsageError, match="is a run of train-tokenizer; features are those of a pretrained"):
        load_network(runs / "tokenizer")
    with pytest.raises(UsageError, match="is a run of pretrain; a run of train-tokenizer is needed"):
        load_tokenizer(runs / "beit")


@pytest.mark.parametrize(("part", "layer", "default"), [("whole", None, 2), ("backbone", None, 2), ("auto", 1, 1)])
def test_a_bundle_has_the_features_of_the_run(
    part: Any, layer: int | None, default: int, runs: Path, network: Network, tmp_path: Path
) -> None:
    export(Export(str(runs / "beit"), "bundle", str(tmp_path / "bundle"), part, layer))
    found = load_network(tmp_path / "bundle", "cpu")
    assert found.layer == default
    for block in range(1, default + 1):
        torch.testing.assert_close(
            found.features(files(runs), block), network.features(files(runs), block), rtol=0, atol=0
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [("depth", 10**9), ("embed_dim", 10**6), ("img_size", [10**6, 10**6]), ("img_size", [16, 4 * 10**200])],
)
def test_a_configuration_of_a_huge_network_takes_no_memory(
    name: str, value: object, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "beit", tmp_path / "beit")
    path = tmp_path / "beit" / "config.json"
    about = json.loads(path.read_text())
    about["config"]["backbone"][name] = value
    path.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"is of a (larger network|network with \w+ 10+$)|a number has 201 dig"):
        load(tmp_path / "beit")
