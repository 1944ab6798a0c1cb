"""The decoder of cross-attention against the equations, and an encoder that sees visible patches alone."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from smalti.core.errors import UsageError
from smalti.core.rng import fold
from smalti.functional.masking import Random, mask_index
from smalti.functional.patches import gather_rows, visible_index
from smalti.models.decoder import CrossAttention
from smalti.models.mim import MaskedImageModel, build_mim
from smalti.models.vit import ViT
from tests import oracles

CONFIG = ViT(img_size=(12, 8), patch_size=4, embed_dim=16, depth=2, num_heads=2, init="xavier")
PATCHES, V = 6, 11
Positions = Literal["absolute", "shared_relative", "block_relative"]
POSITIONS: tuple[Positions, ...] = ("absolute", "shared_relative", "block_relative")


def disturbed(built: MaskedImageModel) -> MaskedImageModel:
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.2)
    return built.eval()


def batch(num: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, masks of half the patches and the positions of the masked ones."""
    masking = Random(0.5)
    mask = masking(fold(np.arange(num)), CONFIG.grid)
    index, _ = mask_index(mask, masking.count(CONFIG.grid))
    images = torch.rand(num, 3, 12, 8, generator=torch.Generator().manual_seed(2))
    return images, torch.from_numpy(mask), torch.from_numpy(index)


@pytest.mark.parametrize(
    "decoder",
    [
        CrossAttention(),
        CrossAttention(depth=3, width=8, num_heads=4, mlp_ratio=2.0),
        CrossAttention(depth=2, mix_layers=True),
    ],
)
def test_scores_equal_the_equations_at_the_masked_positions(decoder: CrossAttention) -> None:
    built, (images, mask, index) = disturbed(build_mim(CONFIG, V, decoder=decoder)), batch()
    with torch.no_grad():
        scores = built(images, mask, index)
    assert scores.shape == (3, 3, V)
    block: Any = built.decoder.blocks[0]  # type: ignore[union-attr]
    assert block.mlp.fc1.out_features == decoder.mlp_ratio * (decoder.width or 16)
    weights = {name: p.detach().double().numpy() for name, p in built.named_parameters()}
    for b in range(3):
        expected = oracles.cross_attention_logits(
            weights,
            images[b].double().numpy(),
            mask[b].numpy(),
            size=4,
            heads=2,
            depth=2,
            grid=CONFIG.grid,
            decoder_heads=decoder.num_heads or 2,
            decoder_depth=decoder.depth,
        )
        assert np.abs(scores[b].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("positions", POSITIONS)
def test_an_encoder_that_sees_all_patches_is_the_plain_one(positions: Positions) -> None:
    config = replace(CONFIG, positions=positions)
    backbone, (images, _, _) = disturbed(build_mim(config, V)).backbone, batch()
    with torch.no_grad():
        everything = torch.arange(PATCHES).expand(3, -1)
        tokens = backbone.embed(images)
        plain = backbone.encode(tokens, layers=True)
        seen = backbone.encode(tokens, layers=True, visible=everything)
    torch.testing.assert_close(seen.patches, plain.patches)
    torch.testing.assert_close(seen.cls, plain.cls)
    torch.testing.assert_close(seen.layers, plain.layers)


@pytest.mark.parametrize("positions", POSITIONS)
def test_where_a_visible_patch_lies_counts_and_its_place_in_the_sequence_does_not(positions: Positions) -> None:
    config = replace(CONFIG, positions=positions)
    backbone, (images, _, _) = disturbed(build_mim(config, V)).backbone, batch(1)
    there, turned, elsewhere = (torch.tensor([index]) for index in ([0, 3, 4], [4, 0, 3], [1, 3, 5]))
    with torch.no_grad():
        tokens = backbone.embed(images)
        first, second = (backbone.encode(gather_rows(tokens, at), visible=at) for at in (there, turned))
        other = backbone.encode(gather_rows(tokens, there), visible=elsewhere)
    torch.testing.assert_close(first.patches[0, 0], second.patches[0, 1])
    torch.testing.assert_close(first.cls, second.cls)
    assert not torch.allclose(first.cls, other.cls, atol=1e-4)


def test_pixels_of_masked_patches_have_no_influence_and_those_of_visible_patches_do() -> None:
    built, (images, mask, index) = disturbed(build_mim(CONFIG, V, decoder=CrossAttention())), batch(1)
    with torch.no_grad():
        before = built(images, mask, index)
        for patch in range(PATCHES):
            row, column = divmod(patch, CONFIG.grid[1])
            changed = images.clone()
            changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.5
            assert torch.equal(built(changed, mask, index), before) == bool(mask[0, patch]), f"patch {patch}"


@pytest.mark.parametrize("decoder", [None, CrossAttention(depth=2)])
def test_a_part_of_the_masked_patches_is_predicted_as_all_of_them_are(decoder: CrossAttention | None) -> None:
    built = disturbed(build_mim(CONFIG, V) if decoder is None else build_mim(CONFIG, V, decoder=decoder))
    images, mask, index = batch()
    with torch.no_grad():
        every, some = built(images, mask, index), built(images, mask, index, at=index[:, 1:])
    torch.testing.assert_close(some, every[:, 1:])


def test_visible_patches_are_those_that_no_mask_covers_in_rising_order() -> None:
    _, mask, _ = batch(20)
    assert visible_index(mask, 3).tolist() == [np.flatnonzero(~one).tolist() for one in mask.numpy()]


def test_the_encoder_has_no_mask_token_and_the_decoder_falls_away_with_its_own() -> None:
    names = {name for name, _ in build_mim(CONFIG, V, decoder=CrossAttention()).named_parameters()}
    assert "mask_token" not in names
    assert "decoder.mask_token" in names
    plain = {name for name, _ in build_mim(CONFIG, V).named_parameters()}
    assert {name for name in names if name.startswith("backbone.")} == plain - {
        "mask_token",
        "head.weight",
        "head.bias",
    }


def test_a_mixture_of_layers_starts_as_the_last_one() -> None:
    decoder = build_mim(CONFIG, V, decoder=CrossAttention(depth=2, mix_layers=True)).decoder
    assert decoder is not None
    assert decoder.layer_weights is not None
    assert decoder.layer_weights.tolist() == [[0.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossAttention(depth=0), "a decoder depth of 0"),
        (lambda: CrossAttention(predicted=0.0), "predicted is 0.0"),
        (lambda: CrossAttention(predicted=1.5), "predicted is 1.5"),
        (lambda: CrossAttention(width=6), "a decoder width of 6"),
        (lambda: build_mim(CONFIG, V, decoder=CrossAttention(width=8, num_heads=3)), "num_heads 3 does not divide"),
    ],
)
def test_what_cannot_be_built_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(UsageError, match=message):
        make()
