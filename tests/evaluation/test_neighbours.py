"""Nearest rows and near pairs are those that a product of all with all finds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.evaluation import neighbours
from smalti.evaluation.feature_files import FeatureFile, Part, Row, open_features, write_features
from smalti.evaluation.neighbours import near_pairs, nearest, scale_of_file

CPU = torch.device("cpu")
COUNT, WIDTH = 23, 6


@pytest.fixture(params=["npy", "parquet"])
def features(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureFile:
    """Of 23 rows the last three are copies of the first three; chunks have 5."""
    monkeypatch.setattr(neighbours, "_CHUNK", 5)
    values = drawn().numpy()
    rows = [Row(2 * number, f"{number}.jpg", "") for number in range(COUNT)]
    parts = [Part(rows[:9], values[:9]), Part(rows[9:], values[9:])]
    write_features(tmp_path / f"f.{request.param}", lambda: parts, WIDTH, {})
    return open_features(tmp_path / f"f.{request.param}")


def drawn() -> Tensor:
    values = 50 + torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(0)) * torch.arange(WIDTH)
    values[20:] = values[:3]
    return values


def unit(values: Tensor) -> Tensor:
    bank = drawn().double()
    scaled = (values.double() - bank.mean(0)) / bank.std(0).clamp_min(1e-6)
    return scaled / scaled.norm(dim=1, keepdim=True)


def test_the_scale_is_that_of_k_nn(features: FeatureFile) -> None:
    mean, std = scale_of_file(features)
    assert torch.allclose(mean, drawn().mean(0))
    assert torch.allclose(std, drawn().std(0).clamp_min(1e-6), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 7, COUNT, 100])
def test_the_nearest_are_those_of_the_whole_product(count: int, features: FeatureFile) -> None:
    queries = drawn()[[0, 11]] + 0.1
    similarity, rows = nearest(features, queries, count, CPU)
    expected = unit(queries) @ unit(drawn()).T
    best = expected.sort(dim=1, descending=True).values
    assert similarity.shape == rows.shape == (2, min(count, COUNT))
    assert (similarity - best[:, :count]).abs().max() < 1e-5
    assert (expected.gather(1, rows) - best[:, :count]).abs().max() < 1e-5
    assert [len(set(found)) for found in rows.tolist()] == [min(count, COUNT)] * 2
    assert set(rows[0, :2].tolist()) <= {0, 20}, "copies differ in the last bit, where a product ends in another kernel"


def test_of_equal_ones_the_first_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows with one number each, whose products are exact."""
    monkeypatch.setattr(neighbours, "_CHUNK", 2)
    values = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0]]
    write_features(tmp_path / "f.npy", lambda: [Part([Row(n, f"{n}", "") for n in range(5)], values)], 2, {})
    exact = torch.zeros(2), torch.ones(2)
    similarity, rows = nearest(open_features(tmp_path / "f.npy"), torch.eye(2), 5, CPU, exact)
    assert rows.tolist() == [[0, 2, 4, 1, 3], [1, 3, 0, 2, 4]]
    assert similarity.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


@pytest.mark.parametrize("threshold", [0.999, 0.5, 0.01, 1e-9])
def test_pairs_are_those_of_the_whole_product_each_once(threshold: float, features: FeatureFile) -> None:
    found = {(pair.first, pair.second): pair.similarity for pair in near_pairs(features, threshold, CPU)}
    whole = unit(drawn()) @ unit(drawn()).T
    expected = {tuple(pair) for pair in np.argwhere(np.triu(whole.numpy(), 1) >= threshold).tolist()}
    assert found.keys() == expected
    assert {(0, 20), (1, 21), (2, 22)} <= found.keys()
    assert all(abs(value - whole[pair]) < 1e-5 for pair, value in found.items())
    assert len(list(near_pairs(features, threshold, CPU))) == len(found)


def test_one_row_has_no_pairs(tmp_path: Path) -> None:
    write_features(tmp_path / "f.npy", lambda: [Part([Row(0, "a", "")], np.ones((1, 2), np.float32))], 2, {})
    one = open_features(tmp_path / "f.npy")
    assert list(near_pairs(one, 0.1, CPU)) == []
    assert nearest(one, torch.ones(1, 2), 3, CPU)[1].tolist() == [[0]]


def test_a_graph_finds_nearly_all_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(neighbours, "_CHUNK", 500)
    values = np.random.default_rng(0).normal(size=(2000, 24)).astype(np.float32)
    values[1500:] = values[:500] + 0.05 * values[500:1000]
    rows = [Row(number, f"{number}.jpg", "") for number in range(len(values))]
    write_features(tmp_path / "f.npy", lambda: [Part(rows, values)], 24, {})
    features = open_features(tmp_path / "f.npy")
    exact = {(pair.first, pair.second): pair.similarity for pair in near_pairs(features, 0.95, CPU)}
    assert len(exact) >= 500
    found = list(neighbours.near_pairs_by_graph(features, 0.95))
    pairs = {(pair.first, pair.second) for pair in found}
    assert len(pairs) == len(found)
    assert pairs <= exact.keys()
    assert len(pairs) >= 0.99 * len(exact)
    assert all(abs(pair.similarity - exact[pair.first, pair.second]) < 1e-5 for pair in found)


def test_a_graph_of_few_rows_is_exact(features: FeatureFile) -> None:
    pytest.importorskip("faiss")
    exact = {pair[1:] for pair in near_pairs(features, 0.01, CPU)}
    assert {pair[1:] for pair in neighbours.near_pairs_by_graph(features, 0.01)} == exact
