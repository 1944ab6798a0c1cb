"""Positions as sines and cosines."""

import math

import pytest
import torch

from smalti.functional.positions import sincos_2d


def test_every_value_is_the_wave_it_should_be() -> None:
    table = sincos_2d((3, 4), 8, amplitude=0.5)
    assert table.shape == (12, 8)
    for row in range(3):
        for column in range(4):
            angles = [place * 2.0 * 100.0 ** (-k / 2) for place in (row, column) for k in range(2)]
            waves = [(math.sin(angle), math.cos(angle)) for angle in angles]
            expected = [waves[i][w] for i, w in ((0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0), (2, 1), (3, 1))]
            assert table[4 * row + column].tolist() == pytest.approx([0.5 * value for value in expected], abs=1e-6)


def test_all_places_are_told_apart_and_neighbours_are_most_alike() -> None:
    table = sincos_2d((14, 14), 64)
    distance = torch.cdist(table, table) + 1e9 * torch.eye(196)
    assert float(distance.min()) > 0.05
    for patch, nearest in enumerate(distance.argmin(1).tolist()):
        assert abs(patch // 14 - nearest // 14) + abs(patch % 14 - nearest % 14) == 1
