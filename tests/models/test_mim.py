"""The masked image model: what is masked, what is predicted, and how it starts."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from smalti.core.rng import fold
from smalti.functional.masking import Random, mask_index
from smalti.models.mim import MaskedImageModel, build_mim
from smalti.models.vit import ViT
from tests import oracles

CONFIG = ViT(img_size=(12, 8), patch_size=4, embed_dim=16, depth=2, num_heads=2, init="xavier")
PATCHES = 6


def model(seed: int = 0) -> MaskedImageModel:
    built = build_mim(CONFIG, vocab_size=11, seed=seed)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.2)
    return built


def batch(num: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, masks and the positions of the masked patches."""
    rng = torch.Generator().manual_seed(2)
    masking = Random(0.5)
    mask = masking(fold(np.arange(num)), CONFIG.grid)
    index, _ = mask_index(mask, masking.count(CONFIG.grid))
    return torch.rand(num, 3, 12, 8, generator=rng), torch.from_numpy(mask), torch.from_numpy(index)


def test_the_base_model_of_the_paper_has_92_099_072_parameters() -> None:
    with torch.device("meta"):
        built = build_mim(ViT(), vocab_size=8192)
    assert sum(p.numel() for p in built.parameters()) == 92_099_072


def test_logits_equal_the_equations_at_the_hidden_positions() -> None:
    built, (images, mask, index) = model(), batch()
    with torch.no_grad():
        logits = built(images, mask, index)
    assert logits.shape == (3, 3, 11)
    weights = {name: p.detach().double().numpy() for name, p in built.named_parameters()}
    for b in range(3):
        expected = oracles.mim_logits(weights, images[b].double().numpy(), mask[b].numpy(), size=4, heads=2, depth=2)
        assert np.abs(logits[b].numpy() - expected[index[b].numpy()]).max() < 1e-5


def test_pixels_of_hidden_patches_have_no_influence_and_those_of_visible_patches_do() -> None:
    built, (images, mask, index) = model(), batch(1)
    with torch.no_grad():
        before = built(images, mask, index)
        for patch in range(PATCHES):
            row, column = divmod(patch, CONFIG.grid[1])
            changed = images.clone()
            changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.5
            after = built(changed, mask, index)
            assert torch.equal(after, before) == bool(mask[0, patch]), f"patch {patch}"


def test_the_mask_token_is_what_stands_for_hidden_patches() -> None:
    built, (images, mask, index) = model(), batch(1)
    with torch.no_grad():
        tokens = built.backbone.embed(images)
        assert built.mask_token is not None
        tokens[mask] = built.mask_token[0, 0]
        expected = built.head(built.backbone.encode(tokens).patches[0, index[0]])
        torch.testing.assert_close(built(images, mask, index)[0], expected)


def test_hiding_nothing_leaves_the_features_of_the_image() -> None:
    built, (images, mask, index) = model(), batch(2)
    with torch.no_grad():
        logits = built(images, torch.zeros_like(mask), index)
        plain = built.head(built.backbone(images).patches)
    torch.testing.assert_close(logits, plain.gather(1, index[..., None].expand(-1, -1, 11)))


def test_every_parameter_learns() -> None:
    built, (images, mask, index) = model(), batch()
    built(images, mask, index).square().sum().backward()
    assert [name for name, p in built.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_loss_at_the_start_is_that_of_guessing() -> None:
    images, mask, index = batch()
    config = dataclasses.replace(CONFIG, init="uniform")
    with torch.no_grad():
        logits = build_mim(config, 512)(images, mask, index)
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(9))
    assert float(nats) == pytest.approx(math.log(512), abs=0.05)


def test_the_same_seed_gives_the_same_weights_and_the_backbone_of_the_configuration() -> None:
    one, same, other = (build_mim(CONFIG, 11, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert not torch.equal(one["mask_token"], other["mask_token"])
    backbone = CONFIG.build(5).state_dict()
    assert all(torch.equal(one[f"backbone.{name}"], backbone[name]) for name in backbone)


def test_mask_token_and_head_start_in_the_range_of_the_paper() -> None:
    built = build_mim(ViT(img_size=(12, 8), patch_size=4, embed_dim=64, depth=1, num_heads=2), 512)
    head = built.head.weight.detach()
    assert float(head.abs().max()) <= 0.02
    assert float(head.std()) == pytest.approx(0.01155, rel=0.01)
    assert not built.head.bias.detach().any()
    assert built.mask_token is not None
    assert 0 < float(built.mask_token.detach().abs().max()) <= 0.02
