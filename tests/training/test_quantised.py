"""The objective of quantised tokenizers, against the equations."""

import dataclasses
from typing import Literal

import numpy as np
import pytest
import torch

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.core.errors import UsageError
from smalti.core.rng import fold, signed
from smalti.tokenizers.quantised import FSQ, VQ, Quantised, VectorQuantised
from smalti.training.objectives import QuantisedObjective
from smalti.training.optim import Optimiser
from smalti.training.trainer import Trainer
from smalti.training.training_plan import Plan
from tests import oracles

STEP = torch.tensor(0)
VECTORS = VQ(vocab_size=7, stride=4, in_chans=1, width=5, depth=1, code_dim=3, commitment=0.5, dead_after=2)
SCALARS = FSQ(levels=(4, 3), stride=4, in_chans=1, width=5, depth=1)


def tokenizer(config: VQ | FSQ) -> Quantised:
    """With residual branches that are not zero."""
    built = config.build()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    return built


def batch(num: int = 3) -> Batch:
    images = torch.rand(num, 1, 8, 4, generator=torch.Generator().manual_seed(0))
    return Batch(image=images, index=torch.arange(num), key=torch.from_numpy(signed(fold(np.arange(num)))))


@pytest.mark.parametrize("likelihood", ["logit_laplace", "mse", "l1"])
@pytest.mark.parametrize("config", [VECTORS, SCALARS], ids=str)
def test_the_loss_equals_the_equation(config: VQ | FSQ, likelihood: Literal["logit_laplace", "mse", "l1"]) -> None:
    """Mean cost of the values' reconstruction + commitment · mean ‖point - value‖²."""
    built, given = tokenizer(config), batch()
    with torch.no_grad():
        output = QuantisedObjective(built, likelihood)(given, STEP)
        points = built.points(given.image)
        values = built.values(built.encode(given.image))
        mean, log_scale = built.pixel_distribution(built.from_code(values.permute(0, 3, 1, 2)))
    triples = zip(*(x.flatten().tolist() for x in (given.image, mean, log_scale)), strict=True)
    cost = np.mean([oracles.reconstruction_loss(likelihood, *triple) for triple in triples])
    gap = float((points.double() - values.double()).square().sum(-1).mean())
    assert float(output.weight) == 3
    assert float(output.loss_sum) / 3 == pytest.approx(cost + (0.5 if config == VECTORS else 0) * gap, rel=1e-4)
    name = "nll" if likelihood == "logit_laplace" else likelihood
    assert float(output.metrics[name][0]) / 3 == pytest.approx(cost, rel=1e-4)
    assert float(output.metrics["gap"][0]) / 3 == pytest.approx(gap, rel=1e-4)


@pytest.mark.parametrize("config", [VECTORS, SCALARS], ids=str)
def test_every_parameter_learns(config: VQ | FSQ) -> None:
    built = tokenizer(config)
    QuantisedObjective(built)(batch(), STEP).loss_sum.backward()
    assert [name for name, p in built.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_gradient_of_a_point_is_that_of_its_value() -> None:
    """Without commitment the encoder learns from d cost / d value alone."""
    built, given = tokenizer(dataclasses.replace(VECTORS, commitment=0.0)), batch()
    points = built.points(given.image).detach().requires_grad_(True)
    values = built.values(built.nearest(points)).detach().requires_grad_(True)
    built.reconstruct(points, built.nearest(points))[0].square().sum().backward()
    built.pixel_distribution(built.from_code(values.permute(0, 3, 1, 2)))[0].square().sum().backward()
    assert points.grad is not None
    assert values.grad is not None
    torch.testing.assert_close(points.grad, values.grad)


def test_the_codebook_follows_the_points_of_a_training_step_once() -> None:
    built, given = tokenizer(VECTORS), batch()
    assert isinstance(built, VectorQuantised)
    objective, before = QuantisedObjective(built), built.codebook
    before = type(before)(*(value.clone() for value in before))
    objective(given, STEP)
    assert torch.equal(built.codes, before.codes)
    with torch.no_grad():
        points, ids = built.points(given.image).flatten(0, 2), built.encode(given.image).flatten()
    objective.after_step(1)
    codes, sizes, sums = (value.double().numpy() for value in before[:3])
    unused, at = before.unused.numpy(), points.double().numpy()
    expected = oracles.follow_codebook(codes, sizes, sums, unused, at, ids.numpy(), 0.99)
    for ours, theirs in zip(built.codebook, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)
    now = built.codes.clone()
    objective.after_step(2)
    assert torch.equal(built.codes, now)


def test_evaluating_does_not_move_the_codebook() -> None:
    built = tokenizer(VECTORS)
    assert isinstance(built, VectorQuantised)
    objective, before = QuantisedObjective(built).eval(), built.sums.clone()
    objective(batch(), STEP)
    objective.after_step(1)
    assert torch.equal(built.sums, before)


def test_without_a_codebook_nothing_follows_and_a_step_in_parts_is_that_of_the_whole_batch() -> None:
    given, norms = batch(4), []
    for accumulate in (1, 2):
        plan = Plan(steps=2, batch_size=4, accumulate=accumulate)
        made = Trainer(QuantisedObjective(tokenizer(SCALARS)), Optimiser(), plan)
        norms.append(float(made.train_step(given, Compute(torch.device("cpu"), torch.float32))[1]))
        assert made.objective._seen is None
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    with pytest.raises(UsageError, match="accumulate is 2, and the codes of this tokenizer"):
        Trainer(QuantisedObjective(tokenizer(VECTORS)), Optimiser(), plan)


def test_it_reads_the_token_view_where_there_is_one() -> None:
    objective, given = QuantisedObjective(tokenizer(SCALARS)), batch()
    both = dataclasses.replace(given, image=torch.zeros(3, 1, 8, 4), token_image=given.image)
    assert torch.equal(objective(given, STEP).loss_sum, objective(both, STEP).loss_sum)
