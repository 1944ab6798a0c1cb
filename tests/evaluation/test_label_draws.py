"""Draws of few labels."""

import pytest
import torch

from smalti.evaluation.label_draws import BUDGETS, Budget
from smalti.evaluation.probe import Split

LABELS = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
SPLIT = Split.of(1000, 0.1, seed=0)


def drawn(budget: Budget, seed: int = 0, number: int = 0) -> torch.Tensor:
    return budget.draw(LABELS, SPLIT.fit, seed, number)


def sizes(positions: torch.Tensor) -> list[int]:
    return torch.bincount(LABELS[positions], minlength=3).tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1 a class", [1, 1, 1]),
        ("5 a class", [5, 5, 5]),
        ("10 a class", [10, 10, 10]),
        ("1 %", [6, 3, 1]),
        ("10 %", [60, 30, 10]),
    ],
)
def test_every_class_has_its_share_of_all_training_images(name: str, expected: list[int]) -> None:
    assert sizes(drawn(next(budget for budget in BUDGETS if budget.name == name))) == expected


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget.name)
def test_a_draw_is_of_different_images_none_of_them_for_validation(budget: Budget) -> None:
    positions = drawn(budget).tolist()
    assert len(set(positions)) == len(positions)
    assert set(positions) <= set(SPLIT.fit.tolist())


def test_draws_and_seeds_differ_and_repeat() -> None:
    budget = Budget("", each=10)
    draws = [tuple(drawn(budget, seed, number).tolist()) for seed in range(3) for number in range(3)]
    assert len(set(draws)) == 9
    assert draws[0] == tuple(drawn(budget).tolist())


def test_what_has_a_label_among_few_has_one_among_more() -> None:
    few, more = (set(drawn(Budget("", each=each)).tolist()) for each in (5, 10))
    assert few < more


def test_every_image_is_drawn_as_often_as_another() -> None:
    """600 draws of 10 of about 270 images: each about 22 times."""
    times = torch.zeros(1000)
    for number in range(600):
        times[drawn(Budget("", each=10), number=number)] += 1
    second = SPLIT.fit[LABELS[SPLIT.fit] == 1]
    expected = 6000 / len(second)
    assert float(times[second].min()) > expected / 3
    assert float(times[second].max()) < expected * 2


def test_a_class_with_fewer_images_gives_what_it_has() -> None:
    labels = torch.tensor([0] * 20 + [1] * 3)
    positions = Budget("", each=10).draw(labels, torch.arange(23), 0, 0)
    assert torch.bincount(labels[positions]).tolist() == [10, 3]


def test_a_class_has_at_least_one_label() -> None:
    labels = torch.tensor([0] * 200 + [1] * 3)
    positions = Budget("", share=0.01).draw(labels, torch.arange(203), 0, 0)
    assert torch.bincount(labels[positions]).tolist() == [2, 1]
