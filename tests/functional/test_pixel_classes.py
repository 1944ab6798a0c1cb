"""Loss and overlap of classes of pixels, against loops; void pixels count nowhere."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.functional.losses import pixel_cross_entropy
from smalti.functional.metrics import VOID, class_ious, mean_iou, pixel_accuracy, pixel_confusion
from tests import oracles


def label_maps(seed: int, classes: int, shape: tuple[int, int, int] = (2, 3, 5)) -> np.ndarray:
    """Some pixels are void, and some classes may be missing."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, rng.integers(1, classes + 1), shape)
    return np.where(rng.random(shape) < 0.2, VOID, ids).astype(np.uint8)


@given(seed=st.integers(0, 1000), classes=st.integers(2, 6))
def test_the_loss_is_that_of_a_loop_over_pixels(seed: int, classes: int) -> None:
    truth = label_maps(seed, classes)
    scores = np.random.default_rng(seed).normal(0, 3, (2, classes, 3, 5))
    nats, count = pixel_cross_entropy(torch.from_numpy(scores), torch.from_numpy(truth))
    expected, pixels = oracles.pixel_loss(scores, truth, VOID)
    assert float(count) == pixels
    assert float(nats) == pytest.approx(expected, rel=1e-5)


def test_void_pixels_have_no_gradient() -> None:
    scores = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    nats, _ = pixel_cross_entropy(scores, torch.tensor([[[0, VOID], [VOID, 2]]], dtype=torch.uint8))
    nats.backward()
    assert scores.grad is not None
    assert (scores.grad.abs().sum(1) > 0).tolist() == [[[True, False], [False, True]]]


@given(seed=st.integers(0, 1000), classes=st.integers(2, 6))
def test_overlap_and_accuracy_are_those_of_a_loop_over_pixels(seed: int, classes: int) -> None:
    truth, predicted = label_maps(seed, classes), np.random.default_rng(seed + 1).integers(0, classes, (2, 3, 5))
    table = pixel_confusion(torch.from_numpy(predicted), torch.from_numpy(truth), classes)
    flat = predicted.flatten().tolist(), truth.flatten().tolist()
    expected = [oracles.class_overlap(*flat, number, VOID) for number in range(classes)]
    found = [None if math.isnan(iou) else iou for iou in class_ious(table).tolist()]
    assert found == pytest.approx(expected)
    there = [iou for iou in expected if iou is not None]
    assert mean_iou(table) == pytest.approx(sum(there) / len(there))
    assert pixel_accuracy(table) == pytest.approx((predicted == truth)[truth != VOID].mean())


def test_a_table_of_parts_is_the_sum_of_their_tables() -> None:
    truth, predicted = torch.from_numpy(label_maps(0, 4)), torch.from_numpy(label_maps(1, 4) % 4)
    parts = [pixel_confusion(p, t, 4) for p, t in zip(predicted, truth, strict=True)]
    assert torch.equal(sum(parts[1:], parts[0]), pixel_confusion(predicted, truth, 4))
    assert int(parts[0].sum()) == int((truth[0] != VOID).sum())


def test_a_class_that_is_taken_for_another_lowers_the_overlap_of_both() -> None:
    table = torch.tensor([[8, 2, 0], [0, 10, 0], [0, 0, 0]])
    assert class_ious(table)[:2].tolist() == [0.8, 10 / 12]
    assert math.isnan(float(class_ious(table)[2]))
    assert mean_iou(table) == pytest.approx((0.8 + 10 / 12) / 2)
