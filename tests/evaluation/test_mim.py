"""The held-out loss of masked image modeling, and the baseline beside it."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.evaluation.completion import complete
from smalti.evaluation.mim import evaluate_mim
from smalti.models.mim import build_mim
from smalti.models.vit import ViT
from smalti.training.objectives import MaskedImageModeling
from tests.test_contracts import GreyLevels
from tests.training.test_objectives import mim_batch

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
    assert result["loss_nats"] == pytest.approx(sum(float(output.loss_sum) for output in outputs) / weight, rel=1e-6)
    hits = sum(float(output.metrics["accuracy"][0]) for output in outputs)
    assert result["accuracy"] == pytest.approx(hits / weight)


def test_the_baseline_is_the_entropy_of_the_masked_tokens_themselves() -> None:
    targets: list[int] = []
    for number in (0, 1):
        batch = numbered()(number)
        assert batch.ids is not None
        targets += batch.ids[batch.mask].tolist()
    shares = np.bincount(targets) / len(targets)
    expected = -sum(p * math.log(p) for p in shares if p)
    assert evaluate_mim(objective(), numbered(), 2, CPU)["unigram_entropy_nats"] == pytest.approx(expected)


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
    assert result == pytest.approx({"loss_nats": 0, "unigram_entropy_nats": 0, "accuracy": 1}, abs=1e-6)


def test_a_completion_replaces_the_hidden_tokens_only() -> None:
    model, tokenizer, batch = objective().model, GreyLevels(vocab_size=8), mim_batch()
    assert batch.ids is not None
    assert batch.mask is not None
    assert batch.mask_index is not None
    result = complete(model, tokenizer, batch, CPU)
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
