"""Whole images at their own size: every pixel has a class, and void counts nowhere."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.data.label_maps import Numbering, open_pairs
from smalti.evaluation.supervised import confusion_on, ious_by_name, predict, scores_of, windows
from smalti.functional.metrics import VOID
from tests.small_runs import scenes

COMPUTE = Compute(torch.device("cpu"), torch.float32)


class ByColour(nn.Module):
    """Scores of dark, red and blue, by how near a pixel is to each."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape[-2:]))
        colours = torch.tensor([[40, 40, 40], [200, 60, 60], [60, 60, 200]]) / 255
        return -(images[:, None] - colours[:, :, None, None]).square().sum(2)


@given(share=st.floats(0.05, 1.0), height=st.integers(1, 60), width=st.integers(1, 60))
def test_windows_cover_every_pixel_and_none_leaves_the_image(share: float, height: int, width: int) -> None:
    seen = np.zeros((height, width), int)
    for top, left, tall, wide in windows(share, height, width):
        assert 0 <= top <= top + tall <= height
        assert 0 <= left <= left + wide <= width
        assert (tall, wide) == (max(1, round(share * height)), max(1, round(share * width)))
        seen[top : top + tall, left : left + wide] += 1
    assert seen.min() >= 1


def test_a_window_as_large_as_the_image_is_one_and_half_of_it_nine() -> None:
    assert windows(1.0, 30, 40) == [(0, 0, 30, 40)]
    assert [box[:2] for box in windows(0.5, 30, 40)] == [(t, v) for t in (0, 8, 15) for v in (0, 10, 20)]


@pytest.mark.parametrize("window", [1.0, 0.5, 0.3])
def test_images_of_several_sizes_are_labelled_pixel_by_pixel(window: float) -> None:
    colours = np.array([[40, 40, 40], [200, 60, 60], [60, 60, 200]], np.uint8)
    blocks = [np.array([[0, 1], [2, 0]]), np.array([[2, 1, 0]])]
    truth = [block.repeat(20, 0).repeat(24, 1) for block in blocks]
    model = ByColour()
    predicted = predict(model, [colours[ids] for ids in truth], (32, 48), window, COMPUTE)
    assert set(model.sizes) == {(32, 48)}
    for guess, ids in zip(predicted, truth, strict=True):
        assert guess.shape == ids.shape
        assert (guess.numpy() == ids).mean() > 0.93, "but for the edges"


class BySide(nn.Module):
    """Windows of dark images are surely of class 1, those of bright ones perhaps of class 2."""

    def forward(self, images: Tensor) -> Tensor:
        dark = images.mean((1, 2, 3)) < 0.4
        scores = torch.zeros(len(images), 3, *images.shape[-2:])
        scores[dark, 1], scores[~dark, 2] = 5.0, 1.0
        return scores


def test_where_windows_overlap_their_scores_are_added() -> None:
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 12:] = 255
    assert windows(0.5, 1, 24) == [(0, left, 1, 12) for left in (0, 6, 12)]
    (found,) = predict(BySide(), [image], (8, 8), 0.5, COMPUTE)
    assert found.tolist() == [[1] * 12 + [2] * 12] * 8


def test_the_table_is_of_all_pixels_that_are_not_void(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes", 11)
    found = open_pairs(folder, "images", "masks", 3, "inside", None).numbered(Numbering(11, 3), ("a", "b", "c"))
    table = confusion_on(ByColour(), found, (24, 32), 1.0, COMPUTE)
    label_maps = np.stack([np.asarray(found[index].label_map) for index in range(11)])
    assert table.sum(1).tolist() == [int((label_maps == number).sum()) for number in range(3)]
    assert int(table.sum()) == int((label_maps != VOID).sum()) == 11 * 22 * 32
    assert scores_of(table)["pixel_accuracy"] > 0.999
    assert scores_of(table)["mean_iou"] > 0.999


def test_a_class_that_does_not_occur_has_no_overlap() -> None:
    table = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert ious_by_name(table, ("a", "b", "c")) == {"class_iou": {"a": 0.75, "b": 0.8, "c": None}}
    assert not math.isnan(scores_of(table)["mean_iou"])
