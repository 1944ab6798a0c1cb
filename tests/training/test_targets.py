"""What can be predicted at masked patches, against the equations."""

import dataclasses
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.core.contracts import Batch, StepOutput, Target
from smalti.training.targets import Pixels, SoftTokens, Tokens
from tests import oracles
from tests.contracts import check_target
from tests.training.test_mim import CONFIG, mim_batch

TARGETS: list[tuple[Target, int]] = [
    (Tokens(), 7),
    (SoftTokens(), 7),
    (Pixels(), 48),
    (Pixels("l1"), 48),
    (Pixels(normalise=False), 48),
]


def predicted(width: int) -> Tensor:
    return torch.randn(4, 3, width, generator=torch.Generator().manual_seed(5))


def means(output: StepOutput) -> dict[str, float]:
    return {"loss": float(output.loss_sum / output.weight)} | {
        name: float(total / count) for name, (total, count) in output.metrics.items()
    }


def hidden_of(batch: Batch) -> list[tuple[int, int, int]]:
    """Image, place in `mask_index`, patch, of every masked patch."""
    assert batch.mask_index is not None
    assert batch.mask_weight is not None
    return [(b, k, int(batch.mask_index[b, k])) for b, k in batch.mask_weight.nonzero().tolist()]


@pytest.mark.parametrize(("target", "width"), TARGETS, ids=lambda value: str(value))
def test_a_target_keeps_its_contract(target: Target, width: int) -> None:
    check_target(target, mim_batch(), width)


class Everywhere(Tokens):
    """Learns from padding too."""

    def __call__(self, predicted: Tensor, batch: Batch, weight: Tensor, with_metrics: bool = True) -> StepOutput:
        return super().__call__(predicted, batch, torch.ones_like(weight), with_metrics)


class Averaged(Tokens):
    """A mean where a sum is asked for."""

    def __call__(self, predicted: Tensor, batch: Batch, weight: Tensor, with_metrics: bool = True) -> StepOutput:
        output = super().__call__(predicted, batch, weight, with_metrics)
        return output._replace(loss_sum=output.loss_sum / output.weight)


class Peeking(Pixels):
    """The mean of the whole image has a part in it."""

    def patches(self, batch: Batch, index: Tensor) -> Tensor:
        return super().patches(batch, index) - batch.image.mean()


@pytest.mark.parametrize(("target", "width"), [(Everywhere(), 7), (Averaged(), 7), (Peeking(), 48)])
def test_a_wrong_target_is_caught(target: Target, width: int) -> None:
    with pytest.raises(AssertionError):
        check_target(target, mim_batch(), width)


def test_guesses_are_counted_over_hidden_patches() -> None:
    batch, scores = mim_batch(), predicted(7)
    assert batch.ids is not None
    places = [oracles.rank(scores[b, k].tolist(), int(batch.ids[b, patch])) for b, k, patch in hidden_of(batch)]
    found = means(Tokens()(scores, batch, torch.ones(4, 3)))
    assert found["accuracy"] == pytest.approx(np.mean([place == 0 for place in places]))
    assert found["top5"] == pytest.approx(np.mean([place < 5 for place in places]))
    assert found["accuracy"] < found["top5"] < 1


@pytest.mark.parametrize("vocab_size", [2, 3])
def test_with_fewer_than_five_tokens_all_are_among_the_best_five(vocab_size: int) -> None:
    batch = mim_batch()
    assert batch.ids is not None
    assert batch.mask_weight is not None
    fewer = dataclasses.replace(batch, ids=batch.ids % vocab_size)
    assert means(Tokens()(predicted(vocab_size), fewer, batch.mask_weight))["top5"] == 1


def test_soft_tokens_cost_the_cross_entropy_against_the_posterior() -> None:
    batch, logits = mim_batch(), predicted(7)
    assert batch.scores is not None
    assert batch.mask_weight is not None
    both = [
        oracles.soft_cross_entropy(logits[b, k].double().numpy(), batch.scores[b, k].double().numpy())
        for b, k, _ in hidden_of(batch)
    ]
    found = means(SoftTokens()(logits, batch, batch.mask_weight))
    assert found["loss"] == pytest.approx(np.mean([nats for nats, _ in both]), rel=1e-5)
    assert found["kl"] == pytest.approx(np.mean([nats - entropy for nats, entropy in both]), rel=1e-5)
    hard = means(Tokens()(logits, batch, batch.mask_weight))
    assert found["hard"] == hard["loss"]
    assert (found["accuracy"], found["top5"]) == (hard["accuracy"], hard["top5"])


def test_what_is_trained_on_is_the_soft_loss_alone() -> None:
    batch, logits = mim_batch(), predicted(7).requires_grad_(True)
    assert batch.scores is not None
    assert batch.mask_weight is not None
    SoftTokens()(logits, batch, batch.mask_weight).loss_sum.backward()
    assert logits.grad is not None
    expected = (logits.detach().softmax(-1) - batch.scores.softmax(-1)) * batch.mask_weight[..., None]
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("error", ["mse", "l1"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_pixels_cost_their_error(error: Literal["mse", "l1"], normalise: bool, as_bytes: bool) -> None:
    batch, guess = mim_batch(), predicted(48)
    images = (255 * batch.image).round()
    batch = dataclasses.replace(batch, image=images.to(torch.uint8) if as_bytes else images / 255)
    assert batch.mask_weight is not None
    costs = []
    for b, k, patch in hidden_of(batch):
        right = oracles.patchify(images[b].double().numpy() / 255, 4)[patch]
        right = oracles.normalised_patch(right) if normalise else right
        costs.append(oracles.patch_error(guess[b, k].double().numpy(), right, error))
    output = Pixels(error, normalise)(guess, batch, batch.mask_weight)
    assert means(output) == pytest.approx({"loss": np.mean(costs)}, rel=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_right_predictions_are_painted_as_the_pixels_themselves(normalise: bool) -> None:
    batch, target = mim_batch(), Pixels(normalise=normalise)
    assert batch.mask_index is not None
    painted = target.painted(target.patches(batch, batch.mask_index), batch)
    torch.testing.assert_close(painted, Pixels(normalise=False).patches(batch, batch.mask_index))
    assert target.painted(100 * torch.ones_like(painted), batch).max() == 1, "clamped to what can be shown"
    assert CONFIG.patch_size**2 * 3 == painted.shape[-1]
