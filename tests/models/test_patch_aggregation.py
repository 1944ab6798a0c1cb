"""Patch aggregation against the equations: a shallow prediction from [S] and the patches of a lower block."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from smalti.core.contracts import Batch, Features
from smalti.core.errors import UsageError
from smalti.core.rng import fold, signed
from smalti.functional.masking import Random, mask_index
from smalti.functional.patches import gather_rows, visible_index
from smalti.models.decoder import CrossAttention, Linear
from smalti.models.layers import drop_path_keep
from smalti.models.mim import MaskedImageModel, build_mim, inference_weights
from smalti.models.patch_aggregation import PatchAggregation
from smalti.models.vit import ViT
from smalti.training.objectives import MaskedImageModeling
from tests import oracles

CONFIG = ViT(img_size=(8, 12), patch_size=4, embed_dim=16, depth=4, num_heads=2, init="xavier", drop_path_rate=0.4)
TWO = PatchAggregation(depth=2)
V, STEP = 7, torch.tensor(0)
GOLDEN = 26.941192626953125, 363.7735595703125
"""Loss and norm of the gradient of `batch()` in the version before there was patch aggregation."""


def batch(num: int = 4) -> Batch:
    rng, masking = torch.Generator().manual_seed(0), Random(0.5)
    mask = masking(fold(np.arange(num)), CONFIG.grid)
    index, weight = mask_index(mask, masking.count(CONFIG.grid))
    return Batch(
        image=torch.rand(num, 3, 8, 12, generator=rng),
        index=torch.arange(num),
        key=torch.from_numpy(signed(fold(np.arange(num)))),
        ids=torch.randint(V, (num, 6), generator=rng),
        mask=torch.from_numpy(mask),
        mask_index=torch.from_numpy(index),
        mask_weight=torch.from_numpy(weight),
    )


def both(model: MaskedImageModel, given: Batch, key: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the last block and of the shallow blocks."""
    with torch.no_grad():
        found = model(given.image, given.mask, given.mask_index, key, aggregated=True)
    last, shallow = found.chunk(2, dim=1)
    return last, shallow


@pytest.mark.parametrize("positions", ["absolute", "shared_relative", "block_relative"])
def test_the_shallow_prediction_equals_the_equations(
    positions: Literal["absolute", "shared_relative", "block_relative"],
) -> None:
    """With stochastic depth at the rates of the blocks after l, drawn by themselves."""
    config, given = replace(CONFIG, positions=positions, init_values=0.5), batch(2)
    model = build_mim(config, V, aggregation=TWO).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.2)
    _, shallow = both(model, given, given.key)
    keep, own = (drop_path_keep(given.key, depth, 0.4, stream) for depth, stream in ((4, 1), (5, 3)))
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    for b in range(2):
        assert given.mask is not None
        assert given.mask_index is not None
        expected = oracles.aggregated_logits(
            weights,
            given.image[b].double().numpy(),
            given.mask[b].numpy(),
            heads=2,
            depth=4,
            layer=3,
            keep=list(keep[:, :, b, 0, 0].double().numpy()),
            shallow_keep=list(own[3:, :, b, 0, 0].double().numpy()),
            grid=CONFIG.grid,
        )
        np.testing.assert_allclose(shallow[b], expected[given.mask_index[b]], atol=1e-5)


def test_queries_read_s_and_the_visible_patches_of_the_lower_block() -> None:
    given = batch()
    model = build_mim(CONFIG, V, decoder=CrossAttention(), aggregation=PatchAggregation(depth=1, layer=2)).eval()
    _, shallow = both(model, given)
    assert model.decoder is not None
    assert model.aggregation is not None
    assert given.mask is not None
    assert given.mask_index is not None
    with torch.no_grad():
        visible = visible_index(given.mask, 3)
        tokens = gather_rows(model.backbone.embed(given.image), visible)
        layers = model.backbone.encode(tokens, visible=visible, layers=True).layers
        x = torch.stack([torch.cat([last[:1], low[1:]]) for last, low in zip(layers[3], layers[1], strict=True)])
        x = model.backbone.norm(model.aggregation.blocks[0](x))
        expected = model.head(model.decoder(Features(x[:, 0], x[:, 1:]), visible, given.mask_index))
    torch.testing.assert_close(shallow, expected)


@pytest.mark.parametrize("decoder", [Linear(), CrossAttention()])
def test_the_loss_is_the_sum_of_both_while_training_and_that_of_the_last_block_afterwards(
    decoder: Linear | CrossAttention,
) -> None:
    given = batch()
    plain = MaskedImageModeling(build_mim(CONFIG, V, decoder=decoder))
    more = MaskedImageModeling(build_mim(CONFIG, V, decoder=decoder, aggregation=TWO))
    alone, found = plain(given, STEP), more(given, STEP)
    last, shallow = (float(found.metrics[name][0]) for name in ("last", "aggregated"))
    assert last == float(alone.loss_sum.detach())
    assert float(found.loss_sum.detach()) == pytest.approx(last + shallow)
    assert shallow != last
    assert float(found.weight) == float(alone.weight)
    assert {name: found.metrics[name] for name in alone.metrics} == dict(alone.metrics)
    found.loss_sum.backward()
    assert [name for name, p in more.model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert torch.equal(more.eval()(given, STEP).loss_sum, plain.eval()(given, STEP).loss_sum)
    with_key = more.model(given.image, given.mask, given.mask_index, given.key)
    assert torch.equal(with_key, plain.model(given.image, given.mask, given.mask_index, given.key))


def test_the_last_state_of_s_has_a_part_in_the_shallow_prediction_alone() -> None:
    given, model = batch(), build_mim(CONFIG, V, aggregation=TWO).eval()
    before = both(model, given)
    step = torch.eye(1, 4)[:, :, None]  # 1 at [S], 0 at the three masked patches
    model.backbone.blocks[3].register_forward_hook(lambda _, inputs, output: output + step)
    after = both(model, given)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_without_it_nothing_is_what_it_was_not() -> None:
    """The numbers are those of the version before; what is drawn for all else does not change with it."""
    plain, more = build_mim(CONFIG, V, 3), build_mim(CONFIG, V, 3, aggregation=TWO)
    assert inference_weights(more.state_dict()).keys() == plain.state_dict().keys()
    assert all(torch.equal(value, more.state_dict()[name]) for name, value in plain.state_dict().items())
    output = MaskedImageModeling(plain).train()(batch(), STEP)
    output.loss_sum.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in plain.parameters() if p.grad is not None])
    assert (float(output.loss_sum.detach()), float(norm)) == pytest.approx(GOLDEN, rel=1e-6)
    assert set(output.metrics) == {"accuracy", "top5"}


def test_its_blocks_start_as_those_of_the_backbone_that_come_after_block_l() -> None:
    deep, shallow = (PatchAggregation(2, layer) for layer in (3, 1))
    blocks = [build_mim(CONFIG, V, aggregation=one).aggregation for one in (deep, shallow)]
    ends = [
        [block.mlp.fc2.weight for block in one.blocks]  # type: ignore[union-attr]
        for one in blocks
        if one is not None
    ]
    for number, (low, high) in enumerate(zip(ends[1], ends[0], strict=True), start=1):
        torch.testing.assert_close(low * (2 * (1 + number)) ** 0.5, high * (2 * (3 + number)) ** 0.5)


def test_its_block_is_three_quarters_up_unless_one_is_named() -> None:
    of = PatchAggregation(depth=2).layer_of
    assert [of(replace(CONFIG, depth=depth)) for depth in (2, 3, 4, 6, 12, 24)] == [1, 2, 3, 5, 9, 18]
    with pytest.raises(UsageError, match="patches of block 4 of 4 are to be aggregated; use 1 to 3"):
        PatchAggregation(2, 4).layer_of(CONFIG)
    with pytest.raises(UsageError, match="patch aggregation in a backbone of one block"):
        of(replace(CONFIG, depth=1))
    with pytest.raises(UsageError, match="a patch aggregation of -1 blocks"):
        PatchAggregation(-1)
    with pytest.raises(UsageError, match="layer is 0; blocks are counted from 1"):
        PatchAggregation(2, 0)
