"""k-nearest neighbours against the loop."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smalti.evaluation.probe import knn_accuracy, leave_one_out_accuracy
from tests import oracles


def clouds(num: int, seed: int, spread: float = 1.0, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian clouds around one centre a class, on axes of very different scales."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % classes
    centres = torch.eye(classes, 6)
    return (centres[labels] + spread * torch.randn(num, 6, generator=rng)) * torch.logspace(-2, 2, 6) + 5, labels


@pytest.mark.parametrize("k", [1, 3, 20, 1000])
def test_accuracy_equals_the_loop_over_neighbours(k: int) -> None:
    (train, train_labels), (test, test_labels) = clouds(80, 0), clouds(60, 1)
    right = 0
    for query, label in zip(test.double().numpy(), test_labels.tolist(), strict=True):
        right += oracles.knn_class(train.double().numpy(), train_labels.numpy(), query, k) == label
    accuracy = knn_accuracy(train, train_labels, test, test_labels, k)
    assert accuracy == pytest.approx(right / 60)
    assert k == 1000 or 0.3 < accuracy < 0.95  # neither trivial nor chance


def test_tight_clouds_are_told_apart() -> None:
    (train, train_labels), (test, test_labels) = clouds(200, 0, 0.01), clouds(100, 1, 0.01)
    assert knn_accuracy(train, train_labels, test, test_labels) == 1.0


def test_shuffled_labels_give_chance() -> None:
    train, test = clouds(800, 0)[0], clouds(800, 1)[0]
    rng = torch.Generator().manual_seed(2)
    labels = torch.randint(4, (2, 800), generator=rng)
    assert knn_accuracy(train, labels[0], test, labels[1]) == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 800))


def test_the_scale_and_place_of_a_feature_do_not_matter() -> None:
    (train, train_labels), (test, test_labels) = clouds(100, 0), clouds(100, 1)
    scale, shift = torch.logspace(-1, 1, 6), torch.linspace(-3, 3, 6)
    plain = knn_accuracy(train, train_labels, test, test_labels)
    assert knn_accuracy(train * scale + shift, train_labels, test * scale + shift, test_labels) == plain


def test_a_constant_feature_is_no_division_by_zero() -> None:
    (train, train_labels), (test, test_labels) = clouds(50, 0), clouds(50, 1)
    wider, wider_test = (torch.cat([x, torch.full((50, 1), 7.0)], 1) for x in (train, test))
    assert knn_accuracy(wider, train_labels, wider_test, test_labels) == knn_accuracy(
        train, train_labels, test, test_labels
    )


def test_more_queries_than_a_chunk_are_all_counted() -> None:
    (train, train_labels), (test, test_labels) = clouds(40, 0), clouds(2100, 1)
    parts = [knn_accuracy(train, train_labels, test[p], test_labels[p]) * 700 for p in torch.arange(2100).split(700)]
    assert knn_accuracy(train, train_labels, test, test_labels) == pytest.approx(sum(parts) / 2100)


@pytest.mark.parametrize("k", [1, 20, 1000])
def test_leaving_one_out_is_asking_all_others(k: int) -> None:
    x, labels = clouds(60, 0)
    x = (x - x.mean(0)) / x.std(0)
    right = 0
    for place in range(60):
        others = torch.arange(60) != place
        cosines = F.cosine_similarity(x[others], x[place][None])
        near, who = cosines.topk(min(k, 59))
        votes = torch.zeros(4).index_add_(0, labels[others][who], (near / 0.07).exp())
        right += int(votes.argmax()) == int(labels[place])
    assert leave_one_out_accuracy(x, labels, k) == pytest.approx(right / 60)
    assert k == 1000 or 0.3 < right / 60 < 0.95


def test_leaving_one_out_an_image_has_no_vote_for_itself() -> None:
    """Pairs of equal images, of different classes."""
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, dim=0)
    assert leave_one_out_accuracy(x, torch.arange(60) % 2, k=1) == 0.0


def test_leaving_one_out_in_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = clouds(70, 0)
    whole = leave_one_out_accuracy(x, labels)
    monkeypatch.setattr("smalti.evaluation.probe._CHUNK", 32)
    assert leave_one_out_accuracy(x, labels) == whole
