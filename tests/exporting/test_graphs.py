"""ONNX and torch.export: any number of images, any size where that is possible, in files that name no place of ours."""

import importlib.util
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.errors import UsageError
from smalti.exporting import onnx, torch_export
from smalti.exporting.graphs import graphs
from smalti.exporting.loaded_model import LoadedModel
from smalti.models.segmenter import Linear
from smalti.tokenizers.dalle import DallE
from smalti.tokenizers.dvae import DVAE
from smalti.tokenizers.kmeans_features import KMeansFeatures
from smalti.tokenizers.quantised import FSQ, VQ
from smalti.tokenizers.simple import KMeansPatches, RandomProjection
from smalti.tokenizers.vqkd import VQKD
from smalti.training.init_weights import resized
from tests.exporting.networks import (
    BASE,
    BLOCKS,
    GREY,
    PAPER,
    RELEASED,
    backbone,
    classifier,
    exported,
    masked,
    run,
    segmenter,
    shaken,
)

SMALL: dict[str, Any] = {"stride": 4, "width": 8}
TOKENIZERS = {
    "dvae": DVAE(vocab_size=16, **SMALL),
    "vq": VQ(vocab_size=16, **SMALL),
    "fsq": FSQ(levels=(4, 5), **SMALL),
    "kmeans": KMeansPatches(vocab_size=16, stride=4),
    "random-projection": RandomProjection(vocab_size=16, stride=4),
    "dalle": DallE(vocab_size=16, width=8, depth=1, stride=4),
    "features": KMeansFeatures(vocab_size=16, backbone=PAPER),
    "vqkd": VQKD(vocab_size=16, code_dim=4, decoder_depth=1, backbone=PAPER, target_dim=8),
}
BACKBONES = {"paper": PAPER, "released": RELEASED, "blocks": BLOCKS, "grey": GREY, "base": BASE}
MISSING = [package for package in onnx.PACKAGES if importlib.util.find_spec(package) is None]
ONNX = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed")
SLOW = pytest.mark.slow
"""A graph takes torch seconds to trace; `make parity` traces them all, and other tests one."""
HERE = [pytest.param(torch_export, id="torch-export", marks=SLOW), pytest.param(onnx, id="onnx", marks=ONNX)]


def both(some: dict[str, Any], for_torch: tuple[str, ...]) -> list[Any]:
    """All for ONNX, some of them for torch.export too, on which that is built."""
    for_onnx = [pytest.param(value, onnx, id=f"{name}-onnx", marks=ONNX) for name, value in some.items()]
    marks = {name: () if name == "released" else SLOW for name in for_torch}
    return for_onnx + [pytest.param(some[n], torch_export, id=f"{n}-torch-export", marks=marks[n]) for n in for_torch]


@pytest.mark.parametrize(("config", "target"), both(BACKBONES, ("paper", "released")))
def test_backbones(config: Any, target: Any, tmp_path: Path) -> None:
    snippet, pairs = exported(backbone(config), target, tmp_path)
    sizes = ("", " of one") + ((" of twice the width",) if config.positions == "absolute" else ())
    assert set(pairs) == {f"{output}{text}" for output in ("cls", "patches") for text in sizes}
    made = run(snippet)
    assert made["cls"].shape == (1, config.embed_dim)
    for path in tmp_path.iterdir():
        assert b"networks.py" not in path.read_bytes()
        assert b"vit.py" not in path.read_bytes()


@pytest.mark.parametrize("target", HERE)
def test_networks_with_heads(target: Any, tmp_path: Path) -> None:
    for number, loaded in enumerate((classifier(PAPER), segmenter(RELEASED), segmenter(PAPER, Linear()))):
        folder = tmp_path / str(number)
        folder.mkdir()
        snippet, _ = exported(loaded, target, folder)
        assert run(snippet)["logits"].shape[:2] == (1, 3)


@pytest.mark.parametrize(("config", "target"), both(TOKENIZERS, ("dvae", "fsq", "features")))
def test_tokenizers(config: Any, target: Any, tmp_path: Path) -> None:
    tokenizer = config.build()
    rng = torch.Generator().manual_seed(0)
    sample = torch.rand(32, 3, 16, 16, generator=rng)
    tokenizer.initialise_from(sample, torch.randperm(32 * 16, generator=rng))
    snippet, pairs = exported(LoadedModel(shaken(tokenizer), side=16), target, tmp_path)
    if tokenizer.grid is None:
        assert pairs["tokens of twice the width"][0].shape == (16, 4, 8)
    assert len(np.unique(np.asarray(pairs["tokens"][0]))) > 1
    assert run(snippet)["images"].shape == (1, 3, 16, 16)


def test_positions_for_another_size_are_those_of_a_resized_network() -> None:
    loaded = backbone(PAPER)
    other = replace(PAPER, img_size=(24, 16)).build().eval()
    other.load_state_dict(resized(loaded.backbone.state_dict(), PAPER.grid, other.config.grid))
    images = torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cls, patches = graphs(loaded)["model"].module(images)
        expected = other(images)
    torch.testing.assert_close(cls, expected.cls, rtol=0, atol=1e-5)
    torch.testing.assert_close(patches, expected.patches, rtol=0, atol=1e-5)


def test_a_program_has_no_pickle(tmp_path: Path) -> None:
    exported(backbone(PAPER), torch_export, tmp_path)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        names = archive.namelist()
        assert not [name for name in names if archive.read(name)[:2] in (b"\x80\x02", b"\x80\x04", b"PK")]
    assert any(name.endswith("model.json") for name in names)


@pytest.mark.parametrize("target", [torch_export, onnx])
def test_a_masked_image_model_is_no_graph(target: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no function of images alone; export it with --part backbone"):
        target.write(masked(PAPER), tmp_path)
