"""Codebooks that follow their points."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from smalti.functional.codebook import (
    Codebook,
    ema_update,
    ema_update_means,
    fast_argmax,
    nearest,
    new_codebook,
    positions_per_chunk,
    replace_dead_codes,
    replacements,
    sample_codes,
    steps_unused,
)
from tests import oracles


def unit(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=rng), dim=-1)


def book(rng: torch.Generator, vocab_size: int = 5, dim: int = 3) -> Codebook:
    return new_codebook(torch.randn(vocab_size, dim, generator=rng))


@given(st.integers(0, 1000), st.integers(0, 30), st.sampled_from([0.0, 0.5, 0.99]))
def test_codes_follow_their_points_as_the_equation_says(seed: int, count: int, decay: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    before = book(rng)
    for _ in range(3):
        points = unit(rng, count, 3)
        ids = torch.randint(5, (count,), generator=rng)
        after = ema_update(before, points, ids, decay)
        codes, sizes, sums = (value.double().numpy() for value in before[:3])
        unused, at = before.unused.numpy(), points.double().numpy()
        expected = oracles.follow_codebook(codes, sizes, sums, unused, at, ids.numpy(), decay)
        for ours, theirs in zip(after, expected, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)
        before = after


def test_codes_stay_at_unit_length_and_those_without_points_where_they_are(rng: torch.Generator) -> None:
    before, points = book(rng), unit(rng, 20, 3)
    after = ema_update(before, points, torch.zeros(20, dtype=torch.int64), 0.9)
    torch.testing.assert_close(after.codes.norm(dim=1), torch.ones(5))
    assert torch.equal(after.codes[1:], before.codes[1:])
    assert not torch.allclose(after.codes[0], before.codes[0])
    assert after.unused.tolist() == [0, 1, 1, 1, 1]
    for _ in range(10_000):  # far below the smallest number
        after = ema_update(after, points[:1], torch.zeros(1, dtype=torch.int64), 0.9)
    assert torch.equal(after.codes[1:], before.codes[1:])


def test_the_codebook_given_to_a_step_is_not_changed_by_it(rng: torch.Generator) -> None:
    before = book(rng)
    copies = [value.clone() for value in before]
    replace_dead_codes(
        ema_update(before, unit(rng, 9, 3), torch.zeros(9, dtype=torch.int64), 0.9), unit(rng, 9, 3), 1, 1
    )
    assert all(torch.equal(value, copy) for value, copy in zip(before, copies, strict=True))


def test_the_nearest_code_is_the_nearest(rng: torch.Generator) -> None:
    points, codes = unit(rng, 4, 6, 3), unit(rng, 9, 3)
    distances = (points[:, :, None] - codes).square().sum(-1)
    assert torch.equal(nearest(points, codes), distances.argmin(-1))


def test_codes_that_had_no_point_for_long_move_to_different_points(rng: torch.Generator) -> None:
    before = book(rng)._replace(unused=torch.tensor([0, 3, 2, 3, 7]))
    points = unit(rng, 8, 3)
    after = replace_dead_codes(before, points, step=5, dead_after=3)
    assert after.unused.tolist() == [0, 0, 2, 0, 0]
    assert torch.equal(after.codes[[0, 2]], before.codes[[0, 2]])
    moved_to = [(points == code).all(1).nonzero().flatten().tolist() for code in after.codes[[1, 3, 4]]]
    assert [len(found) for found in moved_to] == [1, 1, 1]
    assert len({found[0] for found in moved_to}) == 3
    assert torch.equal(after.sums[[1, 3, 4]], after.codes[[1, 3, 4]])
    assert after.sizes[[1, 3, 4]].tolist() == [1, 1, 1]


def test_where_codes_move_is_a_function_of_the_step_alone(rng: torch.Generator) -> None:
    before, points = book(rng)._replace(unused=torch.full((5,), 3)), unit(rng, 50, 3)
    one = replace_dead_codes(before, points, step=5, dead_after=3)
    torch.rand(3)
    assert torch.equal(one.codes, replace_dead_codes(before, points, step=5, dead_after=3).codes)
    assert not torch.equal(one.codes, replace_dead_codes(before, points, step=6, dead_after=3).codes)


def test_more_dead_codes_than_points_share_them(rng: torch.Generator) -> None:
    after = replace_dead_codes(book(rng)._replace(unused=torch.full((5,), 9)), points := unit(rng, 2, 3), 1, 9)
    assert {tuple(code) for code in after.codes.tolist()} == {tuple(point) for point in points.tolist()}


def test_a_live_codebook_is_left_alone(rng: torch.Generator) -> None:
    before = book(rng)._replace(unused=torch.full((5,), 2))
    assert replace_dead_codes(before, unit(rng, 4, 3), 1, dead_after=3) is before


def test_a_dead_code_is_used_again_after_it_has_moved(rng: torch.Generator) -> None:
    """Points on one side, a code on the other: alone it would never be the nearest."""
    points = F.normalize(torch.randn(200, 3, generator=rng) * 0.3 + torch.tensor([1.0, 0, 0]), dim=1)
    now = new_codebook(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [-1.0, 0.1, 0]]))
    for step in range(1, 12):
        ids = nearest(points, now.codes)
        now = replace_dead_codes(ema_update(now, points, ids, 0.9), points, step, dead_after=4)
    assert len(nearest(points, now.codes).unique()) == 3


def test_steps_without_use_are_counted() -> None:
    unused = torch.tensor([4, 0, 2])
    assert steps_unused(unused, torch.tensor([1, 1])).tolist() == [5, 0, 3]


def test_drawn_codes_are_different_and_in_use() -> None:
    ids = torch.tensor([7] * 50 + [3, 5])
    assert sorted(sample_codes(ids, step=1, count=9).tolist()) == [3, 5, 7]
    assert len(sample_codes(ids, step=1, count=2)) == 2
    assert torch.equal(sample_codes(ids, 1, 2), sample_codes(ids, 1, 2))
    first = [sample_codes(ids, step, count=1).item() for step in range(40)]
    assert first.count(7) > 30
    assert len(set(first)) > 1


@pytest.mark.parametrize("most", [0, 3])
def test_no_codes_are_drawn_from_nothing(most: int) -> None:
    assert len(sample_codes(torch.zeros(0, dtype=torch.int64), 1, most)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(scores=st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, float("nan")]), min_size=40, max_size=40), min_size=1))
def test_the_greatest_is_the_first_of_several_as_argmax_says(dtype: torch.dtype, scores: list[list[float]]) -> None:
    rows = torch.tensor(scores).to(dtype)
    assert torch.equal(fast_argmax(rows), rows.argmax(-1))


@given(st.integers(0, 1000), st.integers(0, 30), st.sampled_from([0.0, 0.5, 0.99]))
def test_means_of_codes_follow_what_is_assigned_to_them(seed: int, count: int, decay: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    means, before = torch.rand(5, 4, generator=rng), book(rng)
    for _ in range(3):
        points, values = unit(rng, count, 3), torch.rand(count, 4, generator=rng)
        ids = torch.randint(5, (count,), generator=rng)
        given_to = [value.double().numpy() for value in (means, before.sizes, values)]
        means = ema_update_means(means, before.sizes, values, ids, decay)
        expected = oracles.ema_update_means(given_to[0], given_to[1], given_to[2], ids.numpy(), decay)
        np.testing.assert_allclose(means.numpy(), expected, rtol=1e-4, atol=1e-5)
        before = ema_update(before, points, ids, decay)


def test_dead_codes_move_to_the_points_that_are_named(rng: torch.Generator) -> None:
    points = unit(rng, 9, 3)
    before = book(rng)._replace(unused=torch.tensor([3, 0, 2, 5, 1]))
    dead, chosen = replacements(before.unused, len(points), step=4, dead_after=2)
    assert dead.tolist() == [0, 2, 3]
    assert torch.equal(replace_dead_codes(before, points, 4, 2).codes[dead], points[chosen])
    assert [len(found) for found in replacements(before.unused, len(points), 4, dead_after=9)] == [0, 0]


def test_parts_fit_into_the_cache_of_a_cpu_and_keep_a_gpu_busy() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert (positions_per_chunk(8192, cpu), positions_per_chunk(8192, cpu, on_cpu=128)) == (256, 128)
    assert positions_per_chunk(8192, gpu, on_cpu=128) * 8192 == 1 << 25
    assert positions_per_chunk(1 << 26, gpu) == 1
