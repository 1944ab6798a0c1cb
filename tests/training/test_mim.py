"""Masked image modeling against the equation: what counts, how it is summed, and what is learned from."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from smalti.core.contracts import Batch, StepOutput, Target
from smalti.core.rng import fold, signed
from smalti.functional.masking import Random, mask_index
from smalti.models.decoder import CrossAttention, CrossAttentionBlock
from smalti.models.layers import Block
from smalti.models.mim import build_mim
from smalti.models.vit import ViT
from smalti.training.objectives import MaskedImageModeling, sample_masked
from smalti.training.parallel import shard
from smalti.training.targets import SoftTokens, Tokens
from tests import oracles

CONFIG = ViT(img_size=(8, 12), patch_size=4, embed_dim=16, depth=2, num_heads=2, init="xavier", drop_path_rate=0.5)
STEP = torch.tensor(0)


def mim_batch(num: int = 4) -> Batch:
    rng = torch.Generator().manual_seed(0)
    masking = Random(0.5)
    mask = masking(fold(np.arange(num)), CONFIG.grid)
    mask[-1, np.flatnonzero(mask[-1])[0]] = False  # counts need not be equal
    index, weight = mask_index(mask, masking.count(CONFIG.grid))
    return Batch(
        image=torch.rand(num, 3, 8, 12, generator=rng),
        index=torch.arange(num),
        key=torch.from_numpy(signed(fold(np.arange(num)))),
        ids=torch.randint(7, (num, 6), generator=rng),
        mask=torch.from_numpy(mask),
        mask_index=torch.from_numpy(index),
        mask_weight=torch.from_numpy(weight),
        scores=3 * torch.randn(num, index.shape[1], 7, generator=rng),
    )


def mim(*, equal_images: bool = False) -> MaskedImageModeling:
    return MaskedImageModeling(build_mim(CONFIG, vocab_size=7), equal_images=equal_images)


def part_of(batch: Batch, part: slice) -> Batch:
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    parts: dict[str, Any] = {name: v if v is None else v[part] for name, v in values.items()}
    return Batch(**parts)


def test_the_mim_loss_equals_the_equation() -> None:
    objective, batch = mim().eval(), mim_batch()
    with torch.no_grad():
        output = objective(batch, STEP)
    assert batch.mask is not None
    assert batch.ids is not None
    weights = {name: p.detach().double().numpy() for name, p in objective.model.named_parameters()}
    expected = oracles.mim_loss(
        weights, batch.image.double().numpy(), batch.mask.numpy(), batch.ids.numpy(), size=4, heads=2, depth=2
    )
    assert float(output.loss_sum / output.weight) == pytest.approx(expected, rel=1e-5)
    assert float(output.weight) == int(batch.mask.sum()) == 11


def test_the_loss_of_two_codebooks_is_the_mean_of_the_losses_of_their_heads() -> None:
    """Each as of a model that has this head alone; what is drawn of the first is what it would be without a second."""
    alone, batch = mim().eval(), mim_batch()
    both = MaskedImageModeling(build_mim(CONFIG, vocab_size=7, second_vocab_size=5)).eval()
    for name, value in alone.state_dict().items():
        assert torch.equal(value, both.state_dict()[name])
    assert batch.ids is not None
    second_ids = (batch.ids * 3 + 1) % 5
    with torch.no_grad():
        found = both(dataclasses.replace(batch, second_ids=second_ids), STEP)
        first, only = alone(batch, STEP), both(batch, STEP)
        both.model.keep_second_head()
        second = both(dataclasses.replace(batch, ids=second_ids), STEP)
    assert float(only.loss_sum) == float(first.loss_sum)
    assert float(found.loss_sum) == pytest.approx((float(first.loss_sum) + float(second.loss_sum)) / 2)
    assert float(found.weight) == 11
    for name, of in (("first", first), ("second", second)):
        total, count = found.metrics[name]
        assert float(total / count) == pytest.approx(float(of.loss_sum / of.weight))
    assert float(found.metrics["accuracy"][0]) == float(first.metrics["accuracy"][0])


def test_visible_tokens_are_no_targets() -> None:
    objective, batch = mim().eval(), mim_batch()
    assert batch.ids is not None
    assert batch.mask is not None
    other = dataclasses.replace(batch, ids=torch.where(batch.mask, batch.ids, (batch.ids + 1) % 7))
    assert torch.equal(objective(batch, STEP).loss_sum, objective(other, STEP).loss_sum)


def test_mim_accuracy_counts_right_guesses_over_hidden_patches() -> None:
    objective, batch = mim().eval(), mim_batch()
    assert batch.ids is not None
    assert batch.mask_index is not None
    with torch.no_grad():
        guesses = objective.model(batch.image, batch.mask, batch.mask_index).argmax(-1)
        right = dataclasses.replace(batch, ids=torch.zeros_like(batch.ids).scatter(1, batch.mask_index, guesses))
        hits, count = objective(right, STEP).metrics["accuracy"]
    assert float(hits) == float(count) == 11


def test_drop_path_acts_while_training_only_and_by_the_key_alone() -> None:
    objective, batch = mim(), mim_batch()
    trained, again = objective.train()(batch, STEP), objective(batch, STEP)
    assert torch.equal(trained.loss_sum, again.loss_sum)
    other_keys = dataclasses.replace(batch, key=batch.key + 12345)
    assert not torch.equal(trained.loss_sum, objective(other_keys, STEP).loss_sum)
    evaluated = objective.eval()(batch, STEP)
    assert torch.equal(evaluated.loss_sum, objective(other_keys, STEP).loss_sum)
    assert not torch.equal(trained.loss_sum, evaluated.loss_sum)


@pytest.mark.parametrize("equal_images", [False, True])
def test_the_losses_of_two_parts_add_up(equal_images: bool) -> None:
    objective, batch = mim(equal_images=equal_images).eval(), mim_batch()
    with torch.no_grad():
        whole = objective(batch, STEP)
        parts: list[StepOutput] = [objective(part_of(batch, part), STEP) for part in (slice(0, 1), slice(1, 4))]
    assert float(whole.loss_sum) == pytest.approx(sum(float(part.loss_sum) for part in parts), rel=1e-5)
    assert float(whole.weight) == pytest.approx(sum(float(part.weight) for part in parts))


def test_with_equal_images_the_loss_is_the_mean_of_the_means_of_images() -> None:
    objective, batch = mim().eval(), mim_batch()
    equal = MaskedImageModeling(objective.model, equal_images=True).eval()
    with torch.no_grad():
        alone = [objective(part_of(batch, slice(i, i + 1)), STEP) for i in range(4)]
        together, plain = equal(batch, STEP), objective(batch, STEP)
    means = [float(output.loss_sum / output.weight) for output in alone]
    assert float(together.loss_sum / together.weight) == pytest.approx(np.mean(means), rel=1e-5)
    assert float(together.weight) == pytest.approx(4)
    assert float(together.loss_sum / together.weight) != pytest.approx(float(plain.loss_sum / plain.weight), rel=1e-4)
    assert together.metrics["accuracy"][1] == plain.metrics["accuracy"][1] == 11, "guesses are counted by patches"


def test_only_what_is_predicted_at_hidden_patches_has_a_gradient() -> None:
    objective, batch = mim().eval(), mim_batch()
    states: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, __: object, states_of_patches: torch.Tensor) -> None:
        states_of_patches.retain_grad()
        states.append(states_of_patches)

    handle = objective.model.backbone.norm.register_forward_hook(keep)
    objective(batch, STEP).loss_sum.backward()
    handle.remove()
    assert states[0].grad is not None
    assert batch.mask_weight is not None
    assert torch.equal(states[0].grad[:, 1:].abs().sum(-1) > 0, batch.mask_weight > 0)
    assert not states[0].grad[:, 0].any()


@pytest.mark.parametrize("target", [Tokens(), SoftTokens()])
def test_without_metrics_the_loss_is_the_same(target: Target) -> None:
    objective, batch = MaskedImageModeling(build_mim(CONFIG, vocab_size=7), target).train(), mim_batch()
    whole = objective(batch, STEP)
    objective.with_metrics = False
    bare = objective(batch, STEP)
    assert torch.equal(bare.loss_sum, whole.loss_sum)
    assert (bare.metrics, whole.metrics.keys() >= {"accuracy", "top5"}) == ({}, True)
    assert objective.eval()(batch, STEP).metrics.keys() == whole.metrics.keys(), "measuring needs them always"


@pytest.mark.parametrize(("share", "count"), [(0.5, 2), (0.1, 1)])
def test_a_training_step_predicts_a_share_of_the_masked_patches(share: float, count: int) -> None:
    """Which of them is drawn from the keys, all alike; they cost what they cost among all, measured are all."""
    batch = mim_batch(300)
    chosen = sample_masked(batch, share)
    assert chosen.masks[1].shape == (300, count)
    assert chosen.scores is not None
    assert batch.scores is not None
    times = torch.zeros(3)
    for b in range(300):
        places = [batch.masks[1][b].tolist().index(patch) for patch in chosen.masks[1][b].tolist()]
        assert places == sorted(set(places))
        assert torch.equal(chosen.scores[b], batch.scores[b, places])
        assert torch.equal(chosen.masks[2][b], batch.masks[2][b, places])
        times[places] += 1
    assert (times / 300).tolist() == pytest.approx([count / 3] * 3, abs=0.1)
    assert torch.equal(sample_masked(part_of(batch, slice(7, 9)), share).masks[1], chosen.masks[1][7:9])
    objective = MaskedImageModeling(build_mim(CONFIG, vocab_size=7), SoftTokens(), predicted=share)
    whole = MaskedImageModeling(objective.model, SoftTokens())
    assert torch.equal(objective.train()(batch, STEP).loss_sum, whole.train()(chosen, STEP).loss_sum)
    assert torch.equal(objective.eval()(batch, STEP).loss_sum, whole.eval()(batch, STEP).loss_sum)


def test_every_block_of_encoder_and_decoder_is_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    sharded: list[nn.Module] = []
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda device, shape: (device, shape))
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module, mesh: sharded.append(module))
    model = build_mim(ViT(img_size=(8, 8), patch_size=4, embed_dim=16, depth=2, num_heads=2), 5, 0, CrossAttention())
    shard(model)
    assert [type(module) for module in sharded] == [Block, Block, CrossAttentionBlock, type(model)]
