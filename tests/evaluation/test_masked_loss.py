"""The held-out loss of masked image modeling, and the baselines beside it."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.evaluation.inpainting import inpaint, paint
from smalti.evaluation.pretraining import evaluate_mim, evaluate_pixels
from smalti.functional.patches import patchify
from smalti.models.mim import build_mim
from smalti.models.vit import ViT
from smalti.training.objectives import MaskedImageModeling
from smalti.training.targets import Pixels, SoftTokens
from tests import oracles
from tests.test_contracts import GreyLevels
from tests.training.test_mim import mim_batch

CPU = Compute(torch.device("cpu"), torch.float32)
CONFIG = ViT(img_size=(8, 12), patch_size=4, embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.5)


def numbered() -> Callable[[int], Batch]:
    """Two different batches, the second with fewer images."""
    return lambda number: mim_batch(4 - number)


def objective() -> MaskedImageModeling:
    return MaskedImageModeling(build_mim(CONFIG, vocab_size=8)).train()


def test_the_loss_is_the_mean_over_all_masked_patches_of_all_batches() -> None:
    model = objective()
    result = evaluate_mim(model, numbered(), 2, CPU)
    with torch.no_grad():
        outputs = [model.eval()(numbered()(number), torch.tensor(0)) for number in (0, 1)]
    weight = sum(float(output.weight) for output in outputs)
    assert result.loss_nats == pytest.approx(sum(float(output.loss_sum) for output in outputs) / weight, rel=1e-6)
    hits = sum(float(output.metrics["accuracy"][0]) for output in outputs)
    assert result.accuracy == pytest.approx(hits / weight)


def test_the_baseline_is_the_entropy_of_the_masked_tokens_themselves() -> None:
    targets: list[int] = []
    for number in (0, 1):
        batch = numbered()(number)
        assert batch.ids is not None
        targets += batch.ids[batch.mask].tolist()
    shares = np.bincount(targets) / len(targets)
    expected = -sum(p * math.log(p) for p in shares if p)
    assert evaluate_mim(objective(), numbered(), 2, CPU).unigram_entropy_nats == pytest.approx(expected)


def test_measuring_twice_gives_the_same() -> None:
    model = objective()
    assert evaluate_mim(model, numbered(), 2, CPU) == evaluate_mim(model, numbered(), 2, CPU)


def test_a_model_that_always_says_the_right_token_has_no_loss() -> None:
    model = objective()
    with torch.no_grad():
        model.model.head.weight.zero_()
        model.model.head.bias[3] = 50.0
    batch = mim_batch()
    assert batch.ids is not None
    batch = dataclasses.replace(batch, ids=torch.full_like(batch.ids, 3))
    result = evaluate_mim(model, lambda _: batch, 1, CPU)
    nothing = (
        "loss_nats",
        "unigram_entropy_nats",
        "neighbour_nats",
        "bits_saved_per_token",
        "bits_saved_over_neighbour",
    )
    everything = ("accuracy", "top5_accuracy", "neighbour_accuracy")
    assert result.as_dict() == pytest.approx(dict.fromkeys(nothing, 0) | dict.fromkeys(everything, 1), abs=1e-6)


def test_the_neighbour_baseline_is_that_of_the_hidden_tokens_and_their_nearest_visible_ones() -> None:
    tokens: list[int] = []
    neighbours: list[int] = []
    for number in (0, 1):
        batch = numbered()(number)
        assert batch.ids is not None
        assert batch.mask is not None
        for ids, mask in zip(batch.ids.numpy() % 2, batch.mask.numpy(), strict=True):
            masked = np.flatnonzero(mask).tolist()
            tokens += ids[masked].tolist()
            neighbours += [int(ids[oracles.nearest_visible(mask, patch, CONFIG.grid[1])]) for patch in masked]
    result = evaluate_mim(objective(), of_two_tokens, 2, CPU)
    best = min(oracles.copying_nats(tokens, neighbours, weight) for weight in np.linspace(0, 0.999, 1000))
    assert result.neighbour_nats == pytest.approx(best, abs=1e-5)
    assert result.neighbour_accuracy == pytest.approx(np.mean(np.equal(tokens, neighbours)))
    assert result.neighbour_nats <= result.unigram_entropy_nats


def of_two_tokens(number: int) -> Batch:
    batch = numbered()(number)
    assert batch.ids is not None
    return dataclasses.replace(batch, ids=batch.ids % 2)


def test_bits_saved_are_the_distances_from_the_baselines_in_bits() -> None:
    result = evaluate_mim(objective(), numbered(), 2, CPU)
    saved = (result.unigram_entropy_nats - result.loss_nats) / math.log(2)
    assert result.bits_saved_per_token == pytest.approx(saved)
    saved = (result.neighbour_nats - result.loss_nats) / math.log(2)
    assert result.bits_saved_over_neighbour == pytest.approx(saved)


def test_with_soft_targets_the_loss_beside_the_baselines_is_that_of_hard_tokens() -> None:
    model = build_mim(CONFIG, vocab_size=7)
    plain = evaluate_mim(MaskedImageModeling(model), numbered(), 2, CPU)
    soft = evaluate_mim(MaskedImageModeling(model, SoftTokens()), numbered(), 2, CPU)
    hard, found = plain.as_dict(), soft.as_dict()
    assert {key: found[key] for key in hard} == pytest.approx(hard)
    assert found.keys() - hard.keys() == {"soft_loss_nats", "kl_nats"}
    assert 0 < found["kl_nats"] < found["soft_loss_nats"] != soft.loss_nats


def test_pixels_stand_beside_flat_patches_and_copies() -> None:
    model, one = build_mim(CONFIG, vocab_size=48), mim_batch()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
    found = evaluate_pixels(MaskedImageModeling(model, Pixels()), numbered(), 2, CPU)
    assert found.pixel_loss == found.flat_pixel_loss == pytest.approx(47 / 48, rel=1e-3), "unbiased variance"
    assert found.neighbour_pixel_loss > found.pixel_loss, "noise is not worth copying"
    plain = dataclasses.replace(one, image=torch.full_like(one.image, 0.2))
    found = evaluate_pixels(MaskedImageModeling(model, Pixels("l1", normalise=False)), lambda _: plain, 1, CPU)
    assert found.neighbour_pixel_loss == 0
    assert found.flat_pixel_loss == pytest.approx(0.3)


def test_painting_changes_hidden_patches_only_and_paints_what_is_predicted() -> None:
    model, batch, target = build_mim(CONFIG, vocab_size=48), mim_batch(), Pixels(normalise=False)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(0.75)
    assert batch.mask is not None
    painted = patchify(paint(model, target, batch, CPU), 4)
    assert torch.equal(painted[~batch.mask], patchify(batch.image, 4)[~batch.mask])
    assert (painted[batch.mask] == 0.75).all()


def test_a_completion_replaces_the_hidden_tokens_only() -> None:
    model, tokenizer, batch = objective().model, GreyLevels(vocab_size=8), mim_batch()
    assert batch.ids is not None
    assert batch.mask is not None
    assert batch.mask_index is not None
    result = inpaint(model, tokenizer, batch, CPU)
    assert torch.equal(result.predicted_ids[~batch.mask], batch.ids[~batch.mask])
    with torch.no_grad():
        guesses = model(batch.image, batch.mask, batch.mask_index).argmax(-1)
    for b in range(4):
        for k in range(int(batch.mask[b].sum())):
            assert result.predicted_ids[b, batch.mask_index[b, k]] == guesses[b, k]
    grid = (4, *CONFIG.grid)
    assert torch.equal(result.tokenizer, tokenizer.decode(batch.ids.view(grid)))
    assert torch.equal(result.predicted, tokenizer.decode(result.predicted_ids.view(grid)))
    assert torch.equal(result.original, batch.image)
