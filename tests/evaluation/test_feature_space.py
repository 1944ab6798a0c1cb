"""Features as a space to look at, on features whose answer is known."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.compute import choose_compute
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.evaluation.feature_space import feature_space, flat_map, nearest_others, on_grid, top_confusions
from smalti.models.vit import ViT


def test_the_nearest_are_others_and_the_most_similar_first() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 3.0])
    unit = torch.stack([angles.cos(), angles.sin()], 1)
    assert nearest_others(unit, torch.tensor([0, 3]), 2).tolist() == [[1, 2], [2, 1]]
    assert nearest_others(unit, torch.tensor([0]), 9).shape == (1, 3)


def test_a_flat_map_keeps_what_is_far_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", ModuleType("umap"))  # another package, without UMAP
    generator = torch.Generator().manual_seed(0)
    groups = torch.eye(8)[torch.tensor([0] * 20 + [1] * 20)]
    places, how = flat_map(groups + 0.01 * torch.randn(40, 8, generator=generator))
    assert how == "principal components"
    first = places[:, 0]
    assert abs(first[:20].mean() - first[20:].mean()) > 20 * max(first[:20].std(), first[20:].std())
    again, _ = flat_map(groups + 0.01 * torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))
    assert np.array_equal(places, again)


def test_umap_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Umap:
        def __init__(self, random_state: int, n_jobs: int) -> None:
            assert (random_state, n_jobs) == (0, 1)

        def fit_transform(self, features: Any) -> Any:
            return features[:, :2].astype(np.float32)

    made = ModuleType("umap")
    made.__dict__["UMAP"] = Umap
    monkeypatch.setitem(sys.modules, "umap", made)
    places, how = flat_map(torch.eye(20))
    assert (how, places.shape, places.dtype) == ("UMAP", (20, 2), np.dtype(np.float64))
    assert flat_map(torch.eye(15))[1] == "principal components"  # fewer than it asks for neighbours
    monkeypatch.setitem(sys.modules, "umap", None)  # not installed
    assert flat_map(torch.eye(20))[1] == "principal components"


def test_on_a_grid_every_corner_has_its_image_and_no_image_is_twice() -> None:
    places = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.52, 0.5]])
    grid = on_grid(places, 3, 3)
    assert (grid[2, 0], grid[2, 2], grid[0, 0], grid[0, 2], grid[1, 1]) == (0, 1, 2, 3, 4)
    assert (grid == -1).sum() == 4
    assert on_grid(np.zeros((3, 2)), 2, 2).max() >= 0, "also where all are in one place"


def test_mistakes_are_counted_the_most_frequent_first() -> None:
    labels, predicted = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 2, 2, 0, 2])
    assert top_confusions(predicted, labels) == [(1, 2, 2), (0, 1, 1), (1, 0, 1)]
    assert top_confusions(labels, labels) == []


@pytest.mark.parametrize("labelled", [True, False])
def test_the_block_is_the_one_that_knows_labels_best_or_a_deep_one(labelled: bool, rng: torch.Generator) -> None:
    backbone = ViT(img_size=(8, 8), patch_size=4, in_chans=1, embed_dim=16, depth=3, num_heads=2).build(seed=0).eval()
    images = torch.randint(0, 256, (12, 1, 8, 8), generator=rng, dtype=torch.uint8)
    labels = torch.arange(12) % 2 if labelled else torch.full((12,), -1)
    space = feature_space(backbone, InMemoryDataset(images, labels, ("a", "b")), choose_compute("cpu", "fp32"))
    assert (space.accuracy is not None) == labelled
    assert labelled or space.block == 2
    assert torch.allclose(space.unit.norm(dim=1), torch.ones(12), atol=1e-5)
