"""The backbone: counts, names, and its forward pass against the equations."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.errors import UsageError
from smalti.core.rng import fold, signed
from smalti.functional.positions import sincos_2d
from smalti.models.layers import drop_path_keep
from smalti.models.vit import VisionTransformer, ViT, as_unit_range
from tests import oracles
from tests.contracts import check_backbone

RELEASED: dict[str, Any] = {"positions": "shared_relative", "init_values": 0.1, "k_bias": False}
TINY = ViT(img_size=(8, 12), patch_size=4, in_chans=3, embed_dim=16, depth=3, num_heads=4, drop_path_rate=0.4)
LARGE: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}


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
        dataclasses.replace(TINY, **RELEASED),
        dataclasses.replace(TINY, positions="block_relative", grad_checkpointing=True),
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


def test_the_variant_of_the_release_has_the_names_of_its_timm_model() -> None:
    """Buffers of indices are not saved."""
    paper, released = set(TINY.build().state_dict()), set(dataclasses.replace(TINY, **RELEASED).build().state_dict())
    own = {"attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2"}
    expected = {f"blocks.{i}.{name}" for i in range(3) for name in own} | {"rel_pos_bias.relative_position_bias_table"}
    assert released - paper == expected
    assert paper - released == {"pos_embed"} | {f"blocks.{i}.attn.qkv.bias" for i in range(3)}
    per_block = set(dataclasses.replace(TINY, positions="block_relative").build().state_dict())
    assert per_block - paper == {f"blocks.{i}.attn.relative_position_bias_table" for i in range(3)}


def shaken(config: ViT) -> VisionTransformer:
    """A network without a parameter that is zero or one: biases, norms and tables count too."""
    model = config.build(seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.2)
    return model


def equation(model: VisionTransformer, image: torch.Tensor, **more: Any) -> tuple[Any, Any, Any]:
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    tokens = oracles.embed(weights, image.double().numpy() / 255, 4)
    return oracles.encode(weights, tokens, heads=4, depth=3, grid=model.config.grid, **more)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"init": "xavier"},
        RELEASED,
        {"positions": "block_relative"},
        {"init_values": 1e-5},
        {"k_bias": False},
        {"positions": "shared_relative", "img_size": (4, 16)},
    ],
)
def test_the_forward_pass_equals_the_equations(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(TINY, **changes)
    model, pictures = shaken(config), images(config, 2)
    with torch.no_grad():
        features = model.encode(model.embed(pictures), layers=True)
    for b in range(2):
        cls, patches, layers = equation(model, pictures[b])
        assert np.abs(features.cls[b].numpy() - cls).max() < 1e-5
        assert np.abs(features.patches[b].numpy() - patches).max() < 1e-5
        for ours, expected in zip(features.layers, layers, strict=True):
            assert np.abs(ours[b].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("changes", [{}, RELEASED])
def test_stochastic_depth_equals_the_equations_with_branches_left_out(changes: dict[str, Any]) -> None:
    model, key = shaken(dataclasses.replace(TINY, **changes)), torch.from_numpy(signed(fold(1, np.arange(3))))
    keep = drop_path_keep(key, 3, 0.4)
    assert 0 < int((keep == 0).sum()) < keep.numel()
    with torch.no_grad():
        features = model.encode(model.embed(images(TINY)), key=key)
    for b in range(3):
        expected = equation(model, images(TINY)[b], keep=keep[:, :, b, 0, 0].double().numpy())
        assert np.abs(features.patches[b].numpy() - expected[1]).max() < 1e-5


@pytest.mark.parametrize("positions", ["shared_relative", "block_relative"])
def test_tables_start_at_zero_and_so_change_nothing(positions: Any) -> None:
    config = dataclasses.replace(TINY, positions=positions)
    model, plain = config.build(seed=1), TINY.build(seed=2)
    tables = {name: value for name, value in model.state_dict().items() if name.endswith("bias_table")}
    assert tables
    assert not any(value.any() for value in tables.values())
    plain.load_state_dict(model.state_dict() | {"pos_embed": torch.zeros(1, 7, 16)}, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(model(images(TINY)).patches, plain(images(TINY)).patches)


def test_the_shared_bias_is_computed_once_a_forward() -> None:
    model, calls = dataclasses.replace(TINY, **RELEASED).build(), []
    assert model.rel_pos_bias is not None
    model.rel_pos_bias.register_forward_hook(lambda *_: calls.append(1))
    model(images(TINY))
    assert len(calls) == 1


def test_layer_scale_starts_where_it_is_told_to() -> None:
    model: Any = dataclasses.replace(TINY, init_values=0.25, init="trunc2").build()
    for block in model.blocks:
        assert block.gamma_1.tolist() == block.gamma_2.tolist() == [0.25] * 16


@pytest.mark.parametrize("changes", [{}, RELEASED, {"positions": "block_relative"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_gives_the_same_numbers_bit_by_bit(changes: dict[str, Any], dtype: torch.dtype) -> None:
    key = torch.from_numpy(signed(fold(1, np.arange(3))))
    results = []
    for checkpointing in (False, True):
        model = shaken(dataclasses.replace(TINY, grad_checkpointing=checkpointing, **changes)).train()
        runs: list[int] = []
        model.blocks[1].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            features = model.encode(model.embed(images(TINY)), key=key, layers=True)
        features.patches.float().square().sum().backward()
        assert len(runs) == 1 + checkpointing
        results.append([*features.layers, *(p.grad for p in model.parameters())])
    assert all(torch.equal(plain, again) for plain, again in zip(*results, strict=True))


@pytest.mark.parametrize("changes", [{}, RELEASED, {"positions": "block_relative"}, {"grad_checkpointing": True}])
def test_the_features_of_some_patches_and_their_gradients_are_those_of_all(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(TINY, **changes)
    at = torch.tensor([[0, 4], [2, 3], [5, 1]])
    key = torch.from_numpy(signed(fold(1, np.arange(3))))
    results = []
    for some in (False, True):
        model, states = shaken(config), list[torch.Tensor]()
        model.norm.register_forward_hook(lambda _, __, output, states=states: states.append(output))
        features = model.encode(model.embed(images(config)), key=key, at=at if some else None)
        patches = features.patches if some else features.patches[torch.arange(3)[:, None], at]
        (patches.square().sum() + features.cls.sum()).backward()
        assert states[0].shape == (3, 3 if some else 7, 16)
        results.append([patches, features.cls, *(p.grad for p in model.parameters())])
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-4)


def test_without_gradients_nothing_is_checkpointed() -> None:
    model = dataclasses.replace(TINY, grad_checkpointing=True).build()
    with torch.no_grad():
        assert model(images(TINY)).patches.grad_fn is None


def test_forward_is_embed_then_encode() -> None:
    model, pictures = TINY.build(), images(TINY)
    assert torch.equal(model(pictures).patches, model.encode(model.embed(pictures)).patches)


def test_positions_tell_equal_patches_apart() -> None:
    model = TINY.build()
    flat = torch.full((1, 3, 8, 12), 99, dtype=torch.uint8)
    assert len(torch.unique(model(flat).patches[0], dim=0)) == 6


@pytest.mark.parametrize("init", ["uniform", "trunc1", "trunc2", "width", "xavier"])
def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state_alone(init: Any) -> None:
    config = dataclasses.replace(TINY, init=init)
    state = torch.random.get_rng_state()
    one, same, other = (config.build(seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["pos_embed"], other["pos_embed"])


def test_sincos_positions_are_where_the_patches_are_and_are_learned() -> None:
    config = dataclasses.replace(TINY, pos_init="sincos")
    model = config.build()
    assert model.pos_embed is not None
    assert torch.equal(model.pos_embed.detach()[0, 1:], sincos_2d((2, 3), 16, amplitude=0.1))
    assert model.pos_embed.requires_grad
    plain = TINY.build().state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in model.state_dict().items() if name != "pos_embed")


@pytest.mark.parametrize("changes", [{}, RELEASED])
@pytest.mark.parametrize("training", [True, False])
def test_bf16_features_are_those_of_fp32_but_for_rounding(training: bool, changes: dict[str, Any]) -> None:
    model = dataclasses.replace(TINY, init="xavier", drop_path_rate=0.0, **changes).build().train(training)
    with torch.no_grad():
        exact = model(images(TINY))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(images(TINY))
    assert rounded.patches.dtype == (torch.bfloat16 if training else torch.float32)
    assert float((rounded.patches.float() - exact.patches).abs().max()) < 0.1
    assert float((rounded.patches.float() - exact.patches).abs().mean()) < 0.02


def test_as_unit_range() -> None:
    assert as_unit_range(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    floats = torch.tensor([0.0, 0.3])
    assert as_unit_range(floats) is floats


def test_images_of_another_size_are_refused_with_numbers() -> None:
    model = TINY.build()
    with pytest.raises(UsageError, match="images of 3x12x8, and the network takes 3x8x12; resize them"):
        model.embed(torch.zeros(1, 3, 12, 8))


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
        (
            {"pos_init": "sincos", "positions": "shared_relative"},
            "pos_init sincos with positions shared_relative; only absolute positions have a start to choose",
        ),
        ({"init_values": 0.0}, "init_values 0.0; use a positive number, or none for no LayerScale"),
        ({"depth": 0}, "depth 0; use at least one block"),
        ({"drop_path_rate": 1.0}, "drop_path_rate 1.0"),
        ({"mean": (0.1, 0.2)}, "mean needs 1 or 3 values"),
        ({"std": (0.1, 0.2)}, "std needs 1 or 3 values"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ViT(**fields)


@pytest.mark.parametrize(("shape", "given"), [((3, 96, 96), "3x96x96"), ((1, 64, 64), "1x64x64"), ((64, 64), "64x64")])
def test_images_of_another_size_are_one_clear_line(shape: tuple[int, ...], given: str) -> None:
    network = ViT(img_size=(64, 64), patch_size=8, embed_dim=32, depth=1, num_heads=2).build()
    with pytest.raises(UsageError, match=rf"images of {given}, and the network takes 3x64x64; resize them"):
        network(torch.rand(2, *shape))
