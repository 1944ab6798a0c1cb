"""The backbone: counts, initialisation, and its forward pass against the equations."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.errors import UsageError
from smalti.core.rng import fold, signed
from smalti.functional.positions import sincos_2d
from smalti.models.layers import drop_path_keep
from smalti.models.vit import ViT, as_unit_range
from tests import oracles
from tests.contracts import check_backbone

TINY = ViT(img_size=(8, 12), patch_size=4, in_chans=3, embed_dim=16, depth=3, num_heads=4, drop_path_rate=0.4)
LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}


def images(config: ViT, num: int = 3) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(256, (num, config.in_chans, *config.img_size), generator=rng, dtype=torch.uint8)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        ViT(img_size=(28, 28), patch_size=4, in_chans=1, embed_dim=24, depth=2, num_heads=3, init="xavier"),
        ViT(img_size=(4, 16), patch_size=4, embed_dim=8, depth=1, num_heads=1, mlp_ratio=2.5, mean=(0.1, 0.2, 0.3)),
    ],
)
def test_contract(config: ViT) -> None:
    check_backbone(config.build(), images(config))


def test_the_base_model_of_the_paper_has_85_798_656_parameters() -> None:
    with torch.device("meta"):
        assert count(ViT().build()) == 85_798_656


def test_the_large_model_has_the_parameters_of_the_formula() -> None:
    width, depth = 1024, 24
    block = 12 * width**2 + 13 * width
    expected = depth * block + (3 * 256 + 1) * width + 197 * width + width + 2 * width
    with torch.device("meta"):
        assert count(ViT(**LARGE).build()) == expected


def test_parameters_have_the_names_of_timm() -> None:
    names = {name for name, _ in TINY.build().named_parameters()}
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    expected = {f"blocks.{i}.{part}.{kind}" for i in range(3) for part in block for kind in ("weight", "bias")}
    expected |= {f"{part}.{kind}" for part in ("patch_embed.proj", "norm") for kind in ("weight", "bias")}
    expected |= {"cls_token", "pos_embed"}
    assert names == expected


@pytest.mark.parametrize("init", ["uniform", "xavier"])
def test_the_forward_pass_equals_the_equations(init: Any) -> None:
    config = dataclasses.replace(TINY, init=init)
    model = config.build(seed=3)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, so that nothing is hidden by a zero or a one
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.2)
        pictures = images(config, 2)
        features = model.encode(model.embed(pictures), config.grid, layers=True)
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    for b in range(2):
        tokens = oracles.embed(weights, pictures[b].double().numpy() / 255, 4)
        cls, patches, layers = oracles.encode(weights, tokens, heads=4, depth=3)
        assert np.abs(features.cls[b].numpy() - cls).max() < 1e-5
        assert np.abs(features.patches[b].numpy() - patches).max() < 1e-5
        for ours, expected in zip(features.layers, layers, strict=True):
            assert np.abs(ours[b].numpy() - expected).max() < 1e-5


def test_stochastic_depth_equals_the_equations_with_branches_left_out() -> None:
    model, key = TINY.build(), torch.from_numpy(signed(fold(1, np.arange(3))))
    keep = drop_path_keep(key, 3, 0.4)
    assert 0 < int((keep == 0).sum()) < keep.numel()
    with torch.no_grad():
        features = model.encode(model.embed(images(TINY)), TINY.grid, key=key)
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    for b in range(3):
        tokens = oracles.embed(weights, images(TINY)[b].double().numpy() / 255, 4)
        expected = oracles.encode(weights, tokens, heads=4, depth=3, keep=keep[:, :, b, 0, 0].double().numpy())
        assert np.abs(features.patches[b].numpy() - expected[1]).max() < 1e-5


def test_forward_is_embed_then_encode() -> None:
    model, pictures = TINY.build(), images(TINY)
    assert torch.equal(model(pictures).patches, model.encode(model.embed(pictures), TINY.grid).patches)


def test_positions_tell_equal_patches_apart() -> None:
    model = TINY.build()
    flat = torch.full((1, 3, 8, 12), 99, dtype=torch.uint8)
    assert len(torch.unique(model(flat).patches[0], dim=0)) == 6


@pytest.mark.parametrize("init", ["uniform", "xavier"])
def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state_alone(init: Any) -> None:
    config = dataclasses.replace(TINY, init=init)
    state = torch.random.get_rng_state()
    one, same, other = (config.build(seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["pos_embed"], other["pos_embed"])


def test_uniform_initialisation_has_the_range_and_spread_of_the_paper() -> None:
    """±0.02, standard deviation 0.02/√3; output matrices of block l divided by √(2l)."""
    config = ViT(img_size=(32, 32), patch_size=8, embed_dim=192, depth=4, num_heads=3)
    for name, parameter in config.build().named_parameters():
        values = parameter.detach()
        if name.endswith("bias"):
            assert not values.any(), name
        elif "norm" in name:
            assert (values == 1).all(), name
        else:
            rescaled = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
            scale = 1 / math.sqrt(2 * (int(name.split(".")[1]) + 1)) if rescaled else 1.0
            assert float(values.abs().max()) <= 0.02 * scale
            assert float(values.abs().max()) > 0.0195 * scale or values.numel() < 1000
            if values.numel() > 20_000:
                assert float(values.std()) == pytest.approx(0.01155 * scale, rel=0.01), name


def test_xavier_initialisation_has_its_bound_and_spread() -> None:
    config = ViT(img_size=(32, 32), patch_size=8, embed_dim=96, depth=2, num_heads=3, init="xavier")
    for name, parameter in config.build().named_parameters():
        values = parameter.detach()
        if values.ndim < 2 or name in ("cls_token", "pos_embed"):
            continue
        fan_out, fan_in = values.flatten(1).shape
        rescaled = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
        bound = math.sqrt(6 / (fan_in + fan_out)) / (math.sqrt(2 * (int(name.split(".")[1]) + 1)) if rescaled else 1)
        assert 0.99 * bound < float(values.abs().max()) <= bound * (1 + 1e-6), name
        assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03), name


def test_positions_and_tokens_are_uniform_under_xavier_too() -> None:
    model = dataclasses.replace(TINY, init="xavier").build()
    assert 0 < float(model.pos_embed.detach().abs().max()) <= 0.02
    assert 0 < float(model.cls_token.detach().abs().max()) <= 0.02


def test_sincos_positions_are_where_the_patches_are_and_are_learned() -> None:
    config = dataclasses.replace(TINY, pos_init="sincos")
    model = config.build()
    assert torch.equal(model.pos_embed.detach()[0, 1:], sincos_2d((2, 3), 16))
    assert model.pos_embed.requires_grad
    plain = TINY.build().state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in model.state_dict().items() if name != "pos_embed")


@pytest.mark.parametrize("training", [True, False])
def test_bf16_features_are_those_of_fp32_but_for_rounding(training: bool) -> None:
    model = dataclasses.replace(TINY, init="xavier", drop_path_rate=0.0).build().train(training)
    with torch.no_grad():
        exact = model(images(TINY))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(images(TINY))
    assert float((rounded.patches.float() - exact.patches).abs().max()) < 0.1
    assert float((rounded.patches.float() - exact.patches).abs().mean()) < 0.02


def test_as_unit_range() -> None:
    assert as_unit_range(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    floats = torch.tensor([0.0, 0.3])
    assert as_unit_range(floats) is floats


def test_a_wrong_grid_is_refused_with_numbers() -> None:
    model = TINY.build()
    with pytest.raises(UsageError, match=r"a grid of 3x2 patches; the backbone has \(2, 3\)"):
        model.encode(model.embed(torch.zeros(1, 3, 12, 8)), (3, 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"img_size": (224, 220)}, "patch_size 16 does not divide img_size 224x220; .* multiple of 16"),
        ({"img_size": (0, 224)}, "does not divide img_size 0x224"),
        ({"num_heads": 7}, "num_heads 7 does not divide embed_dim 768"),
        (
            {"pos_init": "sincos", "embed_dim": 6, "num_heads": 1},
            "pos_init sincos with embed_dim 6; use a multiple of 4",
        ),
        ({"depth": 0}, "depth 0; use at least one block"),
        ({"drop_path_rate": 1.0}, "drop_path_rate 1.0"),
        ({"mean": (0.1, 0.2)}, "mean needs 1 or 3 values"),
        ({"std": (0.1, 0.2)}, "std needs 1 or 3 values"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ViT(**fields)
