"""What is counted of a classifier's guesses."""

import math

import pytest
import torch
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.evaluation.supervised import (
    accuracies,
    average_precisions,
    by_class,
    class_scores,
    confusion,
    describe_classes,
    mean_average_precision,
)

SCORES = torch.tensor([[2.0, 1, 0], [0, 3, 1], [1, 0, 2], [5, 4, 0]])
LABELS = torch.tensor([0, 1, 0, 1])


def test_accuracies_and_cross_entropy() -> None:
    found = accuracies(SCORES, LABELS)
    p = SCORES.double().softmax(1)[torch.arange(4), LABELS]
    assert found == {"accuracy": 0.5, "top5": 1.0, "nats": pytest.approx(-float(p.log().mean()))}


def test_the_best_five_of_many() -> None:
    scores = torch.arange(8.0).repeat(3, 1)
    assert accuracies(scores, torch.tensor([7, 3, 2]))["top5"] == pytest.approx(2 / 3)
    assert accuracies(torch.zeros(1, 4), torch.tensor([1]))["nats"] == pytest.approx(math.log(4))


def test_a_row_of_the_table_is_a_class() -> None:
    predicted = SCORES.argmax(1)
    table = confusion(predicted, LABELS, 3)
    assert table.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert by_class(predicted, LABELS, 3) == [0.5, 0.5, None]
    named = {"a": 0.5, "b": 0.5, "c": None}
    assert describe_classes(SCORES, LABELS, ("a", "b", "c"), 3) == {
        "class_accuracy": named,
        "confusion": table.tolist(),
    }
    assert describe_classes(SCORES, LABELS, ("a", "b", "c"), 2) == {"class_accuracy": named}


class Corner(nn.Module):
    """Scores are the top left pixel, and the side of what is shown."""

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        corner = images[:, :, 0, 0]
        return torch.cat([corner, torch.full((len(images), 1), float(images.shape[-1]))], 1)


def test_every_image_is_shown_whole_at_the_size_of_the_network() -> None:
    pixels = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(7, 3, 8, 8) * 30
    images = InMemoryDataset(pixels, torch.zeros(7, dtype=torch.int64), ("a", "b"))
    scores = class_scores(Corner(), images, (16, 16), Compute(torch.device("cpu"), torch.float32), batch_size=3)
    torch.testing.assert_close(scores[:, 0], torch.arange(7) * 30 / 255)
    assert scores[:, 3].tolist() == [16.0] * 7


def test_precision_of_each_label_and_their_mean() -> None:
    scores = torch.tensor([[3.0, 0, 0], [2, 1, 0], [1, 2, 0]])
    shown = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 0]])
    found = average_precisions(scores, shown)
    assert found == [pytest.approx((1 + 2 / 3) / 2), pytest.approx(1 / 3), None]
    assert mean_average_precision(found) == pytest.approx((5 / 6 + 1 / 3) / 2)
    assert mean_average_precision([None]) == 0.0


def test_an_image_whose_label_is_not_known_has_no_part_in_its_precision() -> None:
    scores = torch.tensor([[3.0, 0], [2, 1], [1, 2], [0, 3]])
    shown = torch.tensor([[torch.nan, 1], [1, 0], [0, torch.nan], [1, 0]])
    assert average_precisions(scores, shown) == pytest.approx([(1 + 2 / 3) / 2, 1 / 3])
