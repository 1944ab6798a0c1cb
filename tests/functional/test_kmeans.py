"""Lloyd's k-means."""

from itertools import pairwise

import hypothesis.strategies as st
import torch
from hypothesis import given

from smalti.functional.codebook import kmeans


def squared(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    return (points[:, None] - centres).square().sum(-1)


def test_separate_clouds_are_found(rng: torch.Generator) -> None:
    true = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    points = true.repeat(25, 1) + 0.1 * torch.randn(100, 2, generator=rng)
    centres = kmeans(points, 4, torch.arange(100))
    assert float(squared(true, centres).min(1).values.max()) < 0.05


def test_centres_are_the_means_of_their_points(rng: torch.Generator) -> None:
    points = torch.randn(200, 3, generator=rng)
    centres = kmeans(points, 5, torch.randperm(200, generator=rng), iterations=200)
    nearest = squared(points, centres).argmin(1)
    for number in range(5):
        torch.testing.assert_close(centres[number], points[nearest == number].mean(0), rtol=1e-4, atol=1e-5)


def test_more_rounds_never_fit_worse(rng: torch.Generator) -> None:
    points, order = torch.randn(150, 4, generator=rng), torch.randperm(150, generator=rng)
    errors = [float(squared(points, kmeans(points, 8, order, rounds)).min(1).values.sum()) for rounds in range(8)]
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(errors))


def test_no_rounds_are_the_first_points_of_the_order() -> None:
    points = torch.arange(10.0)[:, None]
    assert kmeans(points, 3, torch.tensor([7, 2, 5, 0, 1, 3, 4, 6, 8, 9]), 0).flatten().tolist() == [7, 2, 5]


@given(st.integers(1, 12), st.integers(1, 20), st.booleans())
def test_centres_are_finite_however_few_points_there_are(num: int, k: int, equal: bool) -> None:
    points = torch.randn(num, 2, generator=torch.Generator().manual_seed(num))
    points = points[:1].expand(num, 2).clone() if equal else points
    centres = kmeans(points, k, torch.arange(num))
    assert centres.shape == (k, 2)
    assert torch.isfinite(centres).all()


def test_the_input_is_left_alone_and_the_result_is_repeatable(rng: torch.Generator) -> None:
    points = torch.randn(50, 2, generator=rng)
    before = points.clone()
    assert torch.equal(kmeans(points, 4, torch.arange(50)), kmeans(points, 4, torch.arange(50)))
    assert torch.equal(points, before)
