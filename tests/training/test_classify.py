"""Classification against the equation: what a label costs, smoothed, mixed or plain."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smalti.core.contracts import Batch
from smalti.core.rng import fold, signed
from smalti.models.classifier import build_classifier
from smalti.models.vit import ViT
from smalti.training.objectives import Classify, ClassifySeveral, class_shares
from tests import oracles

CONFIG = ViT(img_size=(8, 8), patch_size=4, embed_dim=16, depth=2, num_heads=2, init="xavier", drop_path_rate=0.5)
STEP = torch.tensor(0)


def labelled(num: int = 6) -> Batch:
    rng = torch.Generator().manual_seed(0)
    return Batch(
        image=torch.rand(num, 3, 8, 8, generator=rng),
        index=torch.arange(num),
        key=torch.from_numpy(signed(fold(np.arange(num)))),
        label=torch.arange(num) % 7,
    )


def classify(smoothing: float = 0.0) -> Classify:
    objective = Classify(build_classifier(CONFIG, 7), smoothing)
    objective.model.head.weight.data.mul_(1000)
    return objective


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_the_equation(smoothing: float, mixed: bool) -> None:
    objective, batch = classify(smoothing).eval(), labelled()
    if mixed:
        target = F.normalize(torch.rand(6, 7, generator=torch.Generator().manual_seed(1)), p=1, dim=1)
        batch = dataclasses.replace(batch, target=target)
    with torch.no_grad():
        output, scores = objective(batch, STEP), objective.model(batch.image).double().numpy()
    expected = oracles.class_loss(scores, class_shares(batch, 7).double().numpy(), smoothing)
    assert float(output.loss_sum / output.weight) == pytest.approx(expected, rel=1e-5)
    assert float(output.weight) == 6


def test_right_guesses_are_counted_of_mixed_images_by_the_larger_share() -> None:
    objective, batch = classify().eval(), labelled()
    with torch.no_grad():
        guess = objective.model(batch.image).argmax(1)
    right = dataclasses.replace(batch, label=guess)
    wrong = dataclasses.replace(batch, label=(guess + 1) % 7)
    mixed = dataclasses.replace(wrong, target=0.6 * F.one_hot(guess, 7) + 0.4 * F.one_hot((guess + 1) % 7, 7))
    found = [objective(shown, STEP).metrics["accuracy"] for shown in (right, wrong, mixed)]
    assert [(float(hits), float(count)) for hits, count in found] == [(6, 6), (0, 6), (6, 6)]
    assert float(objective(right, STEP).metrics["top5"][0]) == 6


def test_with_fewer_than_five_classes_the_best_five_are_all() -> None:
    objective = Classify(build_classifier(CONFIG, 3)).eval()
    batch = dataclasses.replace(labelled(), label=torch.arange(6) % 3)
    assert float(objective(batch, STEP).metrics["top5"][0]) == 6


def several(smoothing: float = 0.0) -> ClassifySeveral:
    objective = ClassifySeveral(build_classifier(CONFIG, 7), smoothing)
    objective.model.head.weight.data.mul_(1000)
    return objective


@pytest.mark.parametrize("make", [classify, several])
def test_drop_path_acts_while_training_only_and_by_the_key_alone(
    make: Callable[[], Classify | ClassifySeveral],
) -> None:
    objective, batch = make(), dataclasses.replace(labelled(), target=F.one_hot(torch.arange(6) % 7, 7).float())
    trained, again = objective.train()(batch, STEP), objective(batch, STEP)
    assert torch.equal(trained.loss_sum, again.loss_sum)
    assert not torch.equal(trained.loss_sum, objective.eval()(batch, STEP).loss_sum)


def test_the_losses_of_two_parts_add_up() -> None:
    objective, batch = classify(0.1).eval(), labelled()
    with torch.no_grad():
        whole = objective(batch, STEP)
        parts = [objective(part, STEP) for part in batch.split(2)]
    assert float(whole.loss_sum) == pytest.approx(sum(float(part.loss_sum) for part in parts), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_several_labels_is_the_equation(smoothing: float) -> None:
    objective = several(smoothing).eval()
    target = (torch.rand(6, 7, generator=torch.Generator().manual_seed(1)) > 0.6).float()
    batch = dataclasses.replace(labelled(), target=target)
    with torch.no_grad():
        output, scores = objective(batch, STEP), objective.model(batch.image).double().numpy()
    expected = oracles.label_loss(scores, target.double().numpy(), smoothing)
    assert float(output.loss_sum / output.weight) == pytest.approx(expected, rel=1e-5)
    right, count = output.metrics["accuracy"]
    assert (float(right), float(count)) == (int(((scores > 0) == (target.numpy() > 0.5)).sum()), 42)


def test_labels_that_are_not_known_have_no_part_in_loss_gradient_and_accuracy() -> None:
    """The loss of an image is the mean over those that are; it is 0 where none is."""
    objective, rng = several(0.1).eval(), torch.Generator().manual_seed(1)
    target = (torch.rand(6, 7, generator=rng) > 0.6).float()
    known = torch.rand(6, 7, generator=rng) < 0.6
    known[5] = False
    batch = dataclasses.replace(labelled(), target=target.where(known, torch.nan))
    output, scores = objective(batch, STEP), objective.model(batch.image).detach().double().numpy()
    rows = [(scores[i : i + 1, at], target.double().numpy()[i : i + 1, at]) for i, at in enumerate(known.numpy()[:5])]
    assert float(output.loss_sum.detach()) == pytest.approx(
        sum(oracles.label_loss(*row, 0.1) for row in rows), rel=1e-5
    )
    right, count = output.metrics["accuracy"]
    assert float(count) == int(known.sum()) < 42
    assert float(right) == sum(int(((row > 0) == (shown > 0.5)).sum()) for row, shown in rows)
    output.loss_sum.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.model.parameters())
