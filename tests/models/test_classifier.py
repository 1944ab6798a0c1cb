"""A classifier is its backbone, pooled, normalised and read by a head that starts near zero."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from smalti.models.classifier import Pooling, build_classifier
from smalti.models.vit import ViT

CONFIG = ViT(img_size=(8, 12), patch_size=4, embed_dim=16, depth=2, num_heads=2, init="xavier", drop_path_rate=0.5)
IMAGES = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def test_the_mean_of_the_patches_is_normalised_after_pooling_only() -> None:
    model, bare = build_classifier(CONFIG, 5, "mean", seed=3), CONFIG.build(seed=3)
    with torch.no_grad():
        states = bare.encode(bare.embed(IMAGES), layers=True).layers[-1]
        pooled = states[:, 1:].mean(1)
        expected = F.layer_norm(pooled, (16,), eps=1e-6) @ model.head.weight.t() + model.head.bias
        torch.testing.assert_close(model(IMAGES), expected)
    names = {name for name, _ in model.named_parameters()}
    assert {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"} <= names
    assert not any(name.startswith("backbone.norm.") for name in names)


def test_the_special_token_is_read_after_the_last_norm() -> None:
    model, bare = build_classifier(CONFIG, 5, "cls", seed=3), CONFIG.build(seed=3)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), model.head(bare(IMAGES).cls))
    names = {name for name, _ in model.named_parameters()}
    assert "backbone.norm.weight" in names
    assert not any(name.startswith("fc_norm") for name in names)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_head_starts_a_thousand_times_smaller_than_other_weights(pooling: Pooling) -> None:
    head = build_classifier(replace(CONFIG, init="uniform"), 50, pooling).head
    assert 0.9 * 2e-5 < float(head.weight.detach().abs().max()) <= 2e-5
    assert not head.bias.any()


def test_weights_are_those_of_the_seed_and_the_global_state_stays() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (build_classifier(CONFIG, 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_stochastic_depth_is_a_function_of_the_key() -> None:
    model, key = build_classifier(replace(CONFIG, depth=4), 5), torch.arange(3)
    with torch.no_grad():
        dropped, again, whole = model(IMAGES, key), model(IMAGES, key), model(IMAGES)
    assert torch.equal(dropped, again)
    assert not torch.equal(dropped, whole)


def test_uint8_and_float_are_the_same_image() -> None:
    model, pixels = build_classifier(CONFIG, 5), (IMAGES * 255).byte()
    assert torch.equal(model(pixels), model(pixels.float() / 255))
