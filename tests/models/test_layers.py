"""Layers against the equations."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from smalti.core.rng import fold, signed
from smalti.models.layers import Attention, Block, Mlp, PatchEmbed, attend, drop_path_keep
from tests import oracles


def weights_of(module: nn.Module, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: p.detach().double().numpy() for name, p in module.named_parameters()}


def keys(num: int) -> torch.Tensor:
    return torch.from_numpy(signed(fold(0, np.arange(num))))


def test_attend_equals_the_equation(rng: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 3, 5, 4, generator=rng)
    result = attend(q, k, v)
    for b in range(2):
        for head in range(3):
            expected = oracles.attention(*(x[b, head].double().numpy() for x in (q, k, v)))
            assert np.abs(result[b, head].numpy() - expected).max() < 1e-5


def test_attend_equals_the_fused_kernel(rng: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 2, 6, 8, generator=rng)
    bias, fused = torch.randn(2, 6, 6, generator=rng), nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(q, k, v), fused(q, k, v))
    torch.testing.assert_close(attend(q, k, v, bias), fused(q, k, v, attn_mask=bias[None]))


def test_a_bias_of_keys_changes_nothing_and_may_be_left_out(rng: torch.Generator) -> None:
    joint, separate = Attention(12, num_heads=3), Attention(12, num_heads=3, k_bias=False)
    with torch.no_grad():
        joint.qkv.bias.copy_(torch.randn(36, generator=rng))
        q, _, v = joint.qkv.bias.chunk(3)
        own = {"qkv.weight": joint.qkv.weight, "q_bias": q, "v_bias": v}
        separate.load_state_dict(own | {f"proj.{name}": value for name, value in joint.proj.state_dict().items()})
        x = torch.randn(2, 5, 12, generator=rng)
        torch.testing.assert_close(separate(x), joint(x))


def test_attention_equals_the_equation(rng: torch.Generator) -> None:
    layer, x = Attention(12, num_heads=3), torch.randn(2, 5, 12, generator=rng)
    with torch.no_grad():
        result = layer(x)
    for b in range(2):
        expected = oracles.multi_head_attention(x[b].double().numpy(), weights_of(layer, "attn."), "attn", heads=3)
        assert np.abs(result[b].numpy() - expected).max() < 1e-5


def test_mlp_equals_the_equation_with_an_exact_gelu(rng: torch.Generator) -> None:
    layer, x = Mlp(6, 13), 3 * torch.randn(1, 4, 6, generator=rng)
    with torch.no_grad():
        result = layer(x)
    expected = oracles.feed_forward(x[0].double().numpy(), weights_of(layer, "mlp."), "mlp")
    assert np.abs(result[0].numpy() - expected).max() < 1e-5


def test_patch_embedding_normalises_and_projects(rng: torch.Generator) -> None:
    layer = PatchEmbed(4, in_chans=3, embed_dim=5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images = torch.rand(2, 3, 8, 12, generator=rng)
    with torch.no_grad():
        result = layer(images)
    weights = weights_of(layer, "patch_embed.")
    for b in range(2):
        normalised = (images[b].double().numpy() - np.array([[[0.1]], [[0.2]], [[0.3]]])) / [[[0.5]], [[0.6]], [[0.7]]]
        assert np.abs(result[b].numpy() - oracles.embed(weights, normalised, 4, mean=0, std=1)).max() < 1e-5


def test_a_block_without_its_branches_is_the_identity(rng: torch.Generator) -> None:
    x = torch.randn(2, 3, 8, generator=rng)
    assert torch.equal(Block(8, 2, 4.0)(x, torch.zeros(2, 2, 1, 1)), x)


def test_keep_of_one_is_no_stochastic_depth(rng: torch.Generator) -> None:
    block, x = Block(8, 2, 4.0), torch.randn(2, 3, 8, generator=rng)
    torch.testing.assert_close(block(x, torch.ones(2, 2, 1, 1)), block(x))


def test_dropping_one_sample_leaves_the_other_alone(rng: torch.Generator) -> None:
    block, x = Block(8, 2, 4.0), torch.randn(2, 3, 8, generator=rng)
    keep = torch.ones(2, 2, 1, 1)
    keep[:, 0] = 0
    out = block(x, keep)
    assert torch.equal(out[0], x[0])
    torch.testing.assert_close(out[1], block(x)[1])


def test_drop_path_keeps_with_probability_falling_linearly_to_one_minus_the_rate() -> None:
    keep = drop_path_keep(keys(4000), depth=5, rate=0.4)
    assert keep.shape == (5, 2, 4000, 1, 1)
    for layer in range(5):
        p = 0.4 * layer / 4
        values = keep[layer].flatten()
        kept = values[values != 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))
        assert 1 - len(kept) / len(values) == pytest.approx(p, abs=0.02)


def test_drop_path_leaves_the_expectation_unchanged() -> None:
    keep = drop_path_keep(keys(10_000), depth=4, rate=0.3).double()
    worst = 4 * math.sqrt(0.3 / 0.7 / 20_000)
    assert float((keep.mean(dim=(1, 2, 3, 4)) - 1).abs().max()) < worst


def test_drop_path_of_branches_and_blocks_is_independent() -> None:
    dropped = (drop_path_keep(keys(8000), depth=3, rate=0.5) == 0)[1:].reshape(4, 8000).double()
    correlation = torch.corrcoef(dropped) - torch.eye(4)
    assert float(correlation.abs().max()) < 4 / math.sqrt(8000)


def test_drop_path_is_a_function_of_the_key_alone() -> None:
    batch = drop_path_keep(keys(6), 3, 0.5)
    alone = torch.cat([drop_path_keep(key[None], 3, 0.5) for key in keys(6)], dim=2)
    assert torch.equal(batch, alone)


@pytest.mark.parametrize(("depth", "rate"), [(1, 0.5), (4, 0.0)])
def test_a_single_block_or_a_rate_of_zero_drops_nothing(depth: int, rate: float) -> None:
    assert torch.equal(drop_path_keep(keys(100), depth, rate), torch.ones(depth, 2, 100, 1, 1))
