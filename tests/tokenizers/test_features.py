"""Clusters of the features of a teacher: the chain of normalisations, what they depend on, and what they do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from smalti.core.errors import UsageError
from smalti.functional.patches import varied_patches
from smalti.models.vit import VisionTransformer, ViT
from smalti.tokenizers.kmeans_features import KMeansFeatures, KMeansFeatureTokenizer
from tests import oracles

VIT = ViT(img_size=(16, 24), patch_size=4, embed_dim=16, depth=3, num_heads=2, init="xavier")
COUNT = 20


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Noise of few frequencies with flat patches, uint8."""
    coarse = torch.rand(COUNT, 3, 5, 7, generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(coarse, VIT.img_size, mode="bilinear")
    smooth[::4, :, :8, :8] = 0.2
    return (255 * smooth).to(torch.uint8)


@pytest.fixture(scope="module")
def teacher() -> VisionTransformer:
    return VIT.build(seed=5).eval()


def fitted(
    teacher: VisionTransformer, images: torch.Tensor, order: torch.Tensor | None = None
) -> KMeansFeatureTokenizer:
    config, used = KMeansFeatures(vocab_size=8, components=6).with_teacher(teacher)
    tokenizer = config.build()
    tokenizer.fit_to_teacher(used, images)
    tokenizer.initialise_from(images, torch.arange(COUNT * 24) if order is None else order)
    return tokenizer


def test_the_chain_of_normalisations_is_that_of_the_equations(teacher: VisionTransformer, images: torch.Tensor) -> None:
    tokenizer = fitted(teacher, images)
    with torch.no_grad():
        block = teacher.encode(teacher.embed(images), layers=True).layers[1][:, 1:].double().numpy()
        points, ids = tokenizer.points(images), tokenizer.encode(images)
    mean, directions = oracles.feature_projection(block, 6)
    np.testing.assert_allclose(tokenizer.mean, mean, atol=1e-5)
    cosines = np.abs(np.sum(tokenizer.directions.numpy() * directions, axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-3)
    found = np.stack([oracles.feature_points(one, mean, tokenizer.directions.double().numpy()) for one in block])
    np.testing.assert_allclose(points, found, atol=1e-4)
    centres = tokenizer.centres.double().numpy()
    distance = ((points.double().numpy()[:, :, None] - centres) ** 2).sum(-1)
    chosen = np.take_along_axis(distance, ids.flatten(1).numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen, distance.min(-1), atol=1e-5)
    assert ids.shape == (COUNT, *VIT.grid)


def test_centres_are_the_means_of_the_patches_with_more_than_one_colour(
    teacher: VisionTransformer, images: torch.Tensor
) -> None:
    """k-means ends where it does not move any more; patches of a single colour have no part in that."""
    tokenizer = fitted(teacher, images)
    varied = varied_patches(images, VIT.patch_size)
    assert int((~varied).sum()) == 5 * 4
    with torch.no_grad():
        points = tokenizer.points(images)[varied]
        ids = tokenizer.nearest(points)
    means = torch.stack([points[ids == code].mean(0) for code in ids.unique()])
    assert float((tokenizer.centres[ids.unique()] - means).abs().max()) < 0.15


def test_the_same_images_give_the_same_bits_and_a_batch_has_no_part_in_them(
    teacher: VisionTransformer, images: torch.Tensor
) -> None:
    one, again = fitted(teacher, images), fitted(teacher, images)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in one.state_dict().items())
    with torch.no_grad():
        assert torch.equal(torch.cat([one.encode(part) for part in images.split(3)]), one.encode(images))


def test_the_order_of_the_images_has_no_part_in_the_tokens(teacher: VisionTransformer, images: torch.Tensor) -> None:
    """Where k-means starts from the same patches."""
    turned, shown = torch.arange(COUNT).flip(0), varied_patches(images, VIT.patch_size)
    number = shown.flatten().cumsum(0).sub(1).view_as(shown)
    order = torch.empty(int(shown.sum()), dtype=torch.int64)
    order[number[turned][shown[turned]]] = torch.arange(len(order))  # the place, when turned, of each patch
    one, other = fitted(teacher, images), fitted(teacher, images[turned], order)
    with torch.no_grad():
        assert (one.encode(images) == other.encode(images)).double().mean() > 0.99


def test_its_layer_is_two_thirds_up_and_what_is_above_is_not_kept(teacher: VisionTransformer) -> None:
    for depth, layer in ((1, 1), (3, 2), (4, 3), (6, 4), (12, 8), (24, 16)):
        config, used = KMeansFeatures().with_teacher(replace(VIT, depth=depth).build())
        assert (config.layer, len(used.blocks), config.known_backbone.depth) == (layer, layer, layer)
    with pytest.raises(UsageError, match="layer 4 of a teacher of 3 blocks; use 1 to 3"):
        KMeansFeatures(layer=4).with_teacher(teacher)
    cut = VIT.build()
    cut.norm = torch.nn.Identity()
    assert KMeansFeatures().with_teacher(cut)[0].layer == 3
    assert "backbone.norm.weight" not in KMeansFeatures(vocab_size=8, backbone=VIT).build().state_dict()


def test_the_vocabulary_is_that_of_the_rule_unless_one_is_given(teacher: VisionTransformer) -> None:
    config, _ = KMeansFeatures().with_teacher(teacher)
    assert config.with_vocab_size(50_000).vocab_size == 2048
    assert replace(config, vocab_size=100).with_vocab_size(50_000).vocab_size == 100
    assert config.max_fit_images == 2**20 // 24


def test_a_place_of_the_teacher_is_no_part_of_the_tokenizer(teacher: VisionTransformer) -> None:
    config, _ = KMeansFeatures("runs/beit", vocab_size=8).with_teacher(teacher)
    assert config.build().config == replace(config, teacher="")


def test_memory_is_bounded_by_parts_that_do_not_matter(
    teacher: VisionTransformer, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fitted(teacher, images)
    for name, value in (("kmeans_features.CHUNK", 7), ("teacher_features.CHUNK", 7), ("kmeans_features._POINTS", 50)):
        monkeypatch.setattr(f"smalti.tokenizers.{name}", value)
    parts = fitted(teacher, images)
    torch.testing.assert_close(parts.mean, whole.mean)
    with torch.no_grad():
        assert (parts.encode(images) == whole.encode(images)).double().mean() > 0.99
