"""What transformers computes from an export, with its image processor and without remote code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.core.errors import UsageError
from smalti.data.reading import square
from smalti.exporting import huggingface
from smalti.models.decoder import CrossAttention
from smalti.models.vit import ViT
from smalti.training.init_weights import init_from_weights
from smalti.weights.read import read_source
from tests.exporting.networks import (
    BLOCKS,
    GREY,
    PAPER,
    RELEASED,
    SCALED,
    VARIANTS,
    WIDE,
    backbone,
    classifier,
    exported,
    masked,
    run,
    segmenter,
)

transformers = pytest.importorskip("transformers")
pytest.importorskip("torchvision")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8).repeat(4, 0).repeat(4, 1))


def architecture_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_bytes())["architectures"][0]


@pytest.mark.parametrize("config", [*VARIANTS.values(), WIDE], ids=[*VARIANTS, "wide"])
def test_backbones(config: ViT, tmp_path: Path) -> None:
    snippet, _ = exported(backbone(config), huggingface, tmp_path)
    bare = config.positions == "absolute" and config.init_values is None
    assert architecture_of(tmp_path) == ("ViTModel" if bare else "BeitModel")
    picture = PICTURE.convert("L") if config.in_chans == 1 else PICTURE
    if config.in_chans == 3:
        made = run(snippet, images=[picture, picture])
        assert made["features"].shape == (2, 1 + config.grid[0] * config.grid[1], config.embed_dim)
    model = getattr(transformers, architecture_of(tmp_path)).from_pretrained(tmp_path)
    cls = model(torch.zeros(1, config.in_chans, *config.img_size)).pooler_output
    hidden = model(torch.zeros(1, config.in_chans, *config.img_size)).last_hidden_state
    torch.testing.assert_close(cls, hidden[:, 0])


@pytest.mark.parametrize("config", [PAPER, RELEASED, BLOCKS, SCALED])
def test_masked_image_models(config: ViT, tmp_path: Path) -> None:
    loaded = masked(config)
    exported(loaded, huggingface, tmp_path)
    assert architecture_of(tmp_path) == "BeitForMaskedImageModeling"
    again = masked(config).network
    init_from_weights(again, read_source(str(tmp_path)))  # type: ignore[arg-type]
    without_key_bias = {name for name, value in loaded.weights().items() if not name.endswith("qkv.bias")}
    for name, value in again.state_dict().items():
        assert name not in without_key_bias or torch.equal(value, loaded.weights()[name])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("config", [PAPER, RELEASED, BLOCKS, SCALED, GREY])
def test_classifiers(config: ViT, pooling: str, tmp_path: Path) -> None:
    exported(classifier(config, pooling), huggingface, tmp_path)  # type: ignore[arg-type]
    bare = config.positions == "absolute" and config.init_values is None and pooling == "cls"
    assert architecture_of(tmp_path) == f"{'ViT' if bare else 'Beit'}ForImageClassification"
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "newt"}


@pytest.mark.parametrize("config", [PAPER, RELEASED, SCALED])
def test_the_output_of_a_block(config: ViT, tmp_path: Path) -> None:
    exported(backbone(config).truncated(2), huggingface, tmp_path)
    assert architecture_of(tmp_path) == "BeitModel"


def test_the_processor_prepares_images_as_we_do(tmp_path: Path) -> None:
    """Bicubic resizing of whole images first is another order than ours: near, and not equal."""
    loaded = backbone(PAPER)
    exported(loaded, huggingface, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(PICTURE, return_tensors="pt")["pixel_values"][0]
    ours = torch.from_numpy(square(np.array(PICTURE), 16).copy()).permute(2, 0, 1) / 255
    ours = loaded.preprocessing.normalised(ours[None])[0]
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().mean() < 0.05 * ours.std()


def test_what_transformers_does_not_have(tmp_path: Path) -> None:
    wide = ViT(**vars(RELEASED) | {"img_size": (16, 24)})
    for loaded, message in (
        (segmenter(PAPER), "no such segmenter; export the backbone"),
        (masked(PAPER, CrossAttention()), "a linear head only; --part backbone"),
        (backbone(wide), "cannot hold a grid of 4x6 patches"),
        (classifier(WIDE), "cannot hold a grid of 4x6 patches"),
    ):
        with pytest.raises(UsageError, match=message):
            huggingface.write(loaded, tmp_path)
    assert list(tmp_path.iterdir()) == []
