"""A segmenter is its backbone, the outputs of some blocks as maps, and a head; scores are of every pixel."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smalti.core.errors import UsageError
from smalti.models.segmenter import FeaturePyramid, Linear, MultiLevel, UPerHead, as_map, build_segmenter, level_norm
from smalti.models.vit import ViT

CONFIG = ViT(img_size=(8, 12), patch_size=4, embed_dim=16, depth=4, num_heads=2, init="xavier", drop_path_rate=0.5)
IMAGES = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
HEADS: list[Linear | MultiLevel] = [
    Linear(),
    Linear(block=2),
    MultiLevel(width=8),
    MultiLevel(width=8, levels=(1, 1, 2, 3), auxiliary=0.4),
]


def test_the_linear_head_is_a_product_of_normalised_patches_scaled_to_the_image() -> None:
    model, bare = build_segmenter(CONFIG, 5, Linear(block=3), seed=3), CONFIG.build(seed=3)
    linear: Any = model.head.linear
    with torch.no_grad():
        states = bare.encode(bare.embed(IMAGES), layers=True).layers[2][:, 1:]
        scores = F.layer_norm(states, (16,), eps=1e-6) @ linear.weight.t() + linear.bias
        small = scores.reshape(2, 2, 3, 5).permute(0, 3, 1, 2)
        torch.testing.assert_close(model(IMAGES), F.interpolate(small, (8, 12), mode="bilinear"))


def test_each_level_is_made_of_its_block_and_the_auxiliary_head_reads_the_third() -> None:
    head = MultiLevel(width=8, levels=(1, 2, 3, 4), auxiliary=0.4)
    model, bare = build_segmenter(CONFIG, 5, head, seed=3), CONFIG.build(seed=3)
    top: Any = model.head
    with torch.no_grad():
        layers = bare.encode(bare.embed(IMAGES), layers=True).layers
        levels = top.pyramid([as_map(states, (2, 3)) for states in layers])
        expected = [
            F.interpolate(one, (8, 12), mode="bilinear") for one in (top.decode(levels), top.auxiliary(levels[2]))
        ]
        torch.testing.assert_close(model.all_scores(IMAGES), expected)


def test_a_map_has_its_patches_where_they_are() -> None:
    states = torch.arange(2 * 7 * 4.0).reshape(2, 7, 4)
    maps = as_map(states, (2, 3))
    for row, column in ((0, 0), (0, 2), (1, 1)):
        assert torch.equal(maps[:, :, row, column], states[:, 1 + 3 * row + column])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(8, 12), (4, 28), (20, 20), (4, 8)])
def test_every_pixel_has_scores_on_any_grid(head: Linear | MultiLevel, size: tuple[int, int]) -> None:
    model = build_segmenter(replace(CONFIG, img_size=size), 5, head)
    images = torch.rand(2, 3, *size)
    scores = model.all_scores(images)
    assert [tuple(part.shape) for part in scores] == [(2, 5, *size)] * (1 + (head.auxiliary > 0))
    assert torch.equal(model(images), scores[0])
    torch.stack([part.sum() for part in scores]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())


def test_blocks_above_those_that_are_read_neither_run_nor_learn() -> None:
    model, run = build_segmenter(CONFIG, 5, Linear(block=2)), []
    for number, block in enumerate(model.backbone.blocks):
        block.register_forward_hook(lambda *_, number=number: run.append(number))
    model(IMAGES, torch.arange(2)).sum().backward()
    assert run == [0, 1]
    for name, parameter in model.named_parameters():
        above = name.startswith(("backbone.blocks.2.", "backbone.blocks.3."))
        assert (parameter.grad is not None) == parameter.requires_grad == (not above), name


def test_the_last_norm_falls_away_and_the_head_has_its_prefix() -> None:
    for head in HEADS:
        names = {name for name, _ in build_segmenter(CONFIG, 5, head).named_parameters()}
        assert not any(name.startswith("backbone.norm.") for name in names)
        assert all(name.startswith(("backbone.", "head.")) for name in names)


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, (4, 6, 8, 12)), (24, (8, 12, 16, 24)), (6, (2, 3, 4, 6)), (1, (1,) * 4)]
)
def test_levels_are_those_of_the_released_code(depth: int, blocks: tuple[int, ...]) -> None:
    assert MultiLevel().blocks(depth) == blocks
    assert Linear().blocks(depth) == (depth,)


def test_the_pyramid_has_four_two_one_and_half_the_resolution() -> None:
    pyramid, maps = FeaturePyramid(16), [torch.rand(1, 16, 3, 5) for _ in range(4)]
    levels = pyramid(maps)
    assert [tuple(level.shape[-2:]) for level in levels] == [(12, 20), (6, 10), (3, 5), (2, 3)]
    assert levels[2] is maps[2]
    assert float(levels[3][0, 0, 0, 0]) == float(maps[3][0, 0, :2, :2].max())
    kinds = [type(layer) for layer in pyramid.levels[0].children()]
    assert kinds == [nn.ConvTranspose2d, nn.GroupNorm, nn.GELU, nn.ConvTranspose2d]


def test_coarse_levels_reach_the_scores_through_the_finer_ones() -> None:
    head, rng = UPerHead(16, 8, 3), torch.Generator().manual_seed(0)
    levels = [torch.randn(1, 16, side, side, generator=rng) for side in (8, 4, 2, 1)]
    merged: list[torch.Tensor] = []
    for output in head.output:
        output.register_forward_pre_hook(lambda _, inputs: merged.append(inputs[0]))
    with torch.no_grad():
        before = head(levels)
        coarse, finest = head._pool(levels[3]), merged[-1]
        for lateral, level in zip(list(head.lateral)[::-1], levels[2::-1], strict=True):
            coarse = lateral(level) + F.interpolate(coarse, level.shape[-2:], mode="bilinear")
        torch.testing.assert_close(finest, coarse)
        for number in range(4):
            changed = [
                level + (torch.randn(level.shape, generator=rng) if n == number else 0)
                for n, level in enumerate(levels)
            ]
            assert not torch.allclose(head(changed), before, atol=1e-4), number
    assert before.shape == (1, 3, 8, 8)
    assert head.bottleneck[0].in_channels == 16 + 4 * 8


def test_norms_do_not_see_other_images() -> None:
    model, apart = build_segmenter(CONFIG, 5, MultiLevel(width=8)), slice(1, 2)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES)[apart], model(IMAGES[apart]))
    assert (level_norm(24).num_groups, level_norm(20).num_groups) == (3, 1)


@pytest.mark.parametrize("head", HEADS)
def test_weights_are_those_of_the_seed_and_the_global_state_stays(head: Linear | MultiLevel) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (build_segmenter(CONFIG, 5, head, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(next(one.head.parameters()), next(other.head.parameters())) or isinstance(head, Linear)
    assert not torch.equal([*one.head.parameters()][-2], [*other.head.parameters()][-2])


def test_stochastic_depth_is_a_function_of_the_key() -> None:
    model, key = build_segmenter(CONFIG, 5, Linear()), torch.arange(2)
    with torch.no_grad():
        assert torch.equal(model(IMAGES, key), model(IMAGES, key))
        assert not torch.equal(model(IMAGES, key), model(IMAGES))


@pytest.mark.parametrize("head", [Linear(block=5), MultiLevel(levels=(1, 2, 3, 5))])
def test_a_block_that_is_not_there_is_refused(head: Linear | MultiLevel) -> None:
    with pytest.raises(UsageError, match="the head reads block 5; the backbone has 4 blocks, counted from 1"):
        build_segmenter(CONFIG, 5, head)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Linear, {"block": 0}, "block 0; count blocks from 1"),
        (MultiLevel, {"width": 12}, "a width of 12; use a multiple of 8"),
        (MultiLevel, {"width": 0}, "a width of 0; use a multiple of 8"),
        (MultiLevel, {"levels": (0, 1, 2, 3)}, r"levels \(0, 1, 2, 3\); count blocks from 1"),
        (MultiLevel, {"auxiliary": -1.0}, "an auxiliary weight of -1.0; use 0 or more"),
    ],
)
def test_impossible_settings_are_refused(kind: type[Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind(**fields)
