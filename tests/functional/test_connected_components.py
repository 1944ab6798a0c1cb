"""Connected components of masks, against a walk from patch to patch."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from smalti.functional.masking import component_sizes
from tests import oracles


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_components_are_those_found_by_walking(seed: int, height: int, width: int, share: float) -> None:
    masks = np.random.default_rng(seed).random((6, height * width)) < share
    expected = sorted(size for mask in masks for size in oracles.component_sizes(mask, (height, width)))
    assert sorted(component_sizes(masks, (height, width)).tolist()) == expected


def test_corners_do_not_connect_nor_do_opposite_borders_nor_do_masks() -> None:
    mask = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], np.bool_).reshape(1, -1)
    assert component_sizes(np.concatenate([mask, mask]), (3, 3)).tolist() == [1] * 10
    assert component_sizes(np.ones((2, 9), np.bool_), (3, 3)).tolist() == [9, 9]
    assert component_sizes(np.zeros((2, 9), np.bool_), (3, 3)).tolist() == []
