"""Reference curves: which is nearest, what lies between their points, and what a difference is called."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.core.config import from_json, to_json
from smalti.core.errors import UsageError
from smalti.evaluation.reference_curves import (
    Reference,
    Setup,
    nearest,
    references,
    standing,
    vocab_size_of,
)
from tests import oracles

SETUP = Setup("tokens", 1024, 64, 26, 128, 6, 300_000, "blocks")
PIXELS = replace(SETUP, target="pixels", vocab_size=None)
CURVE = Reference("a", "images", SETUP, 6.0, 5.0, (100, 1000, 4000), (5.5, 5.0, 4.0))


def named(name: str, setup: Setup) -> Reference:
    return replace(CURVE, name=name, setup=setup)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"num_images": 3_000}, True),
        ({"vocab_size": 4096}, True),
        ({"vocab_size": 4097}, False),
        ({"vocab_size": 2048, "depth": 24}, False),
        ({"channels": 1}, False),
        ({"masks": "random"}, False),
        ({"decoder": "cross-attention"}, False),
        ({"optimiser": "muon"}, False),
    ],
)
def test_runs_that_are_far_apart_are_neither_ahead_nor_behind(change: dict[str, Any], expected: bool) -> None:
    assert replace(SETUP, **change).comparable(SETUP) == SETUP.comparable(replace(SETUP, **change)) == expected


@given(st.integers(100, 4000))
def test_between_two_points_a_gain_is_linear_in_the_logarithm_of_images(images: int) -> None:
    loss = oracles.between_points_on_a_log_scale(CURVE.images, CURVE.loss, images)
    assert CURVE.gain(images) == pytest.approx(6.0 - loss, abs=1e-12)


def test_at_its_points_a_gain_is_what_the_run_had_and_outside_there_is_none() -> None:
    assert [CURVE.gain(images) for images in (100, 1000, 4000)] == pytest.approx([0.5, 1.0, 2.0])
    assert CURVE.gain(99) is None
    assert CURVE.gain(4001) is None
    assert CURVE.held_out_gain == 1.0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "same"),
        ({"vocab_size": 8192}, "codes"),
        ({"num_patches": 196, "num_masked_patches": 80}, "patches"),
        ({"num_masked_patches": 48}, "masked"),
        ({"embed_dim": 768, "depth": 12}, "large"),
        ({"vocab_size": 2000}, "same"),
        ({"num_images": 10_000}, "short"),
        ({"num_images": 200_000}, "same"),
        ({"masks": "random"}, "each by itself"),
        ({"masks": "random", "embed_dim": 768, "depth": 12}, "each by itself"),
        ({"decoder": "cross-attention", "embed_dim": 768, "depth": 12}, "visible"),
        ({"decoder": "cross-attention", "masks": "random"}, "each by itself"),
        ({"optimiser": "muon"}, "muon"),
    ],
)
def test_the_nearest_run_is_the_one_that_differs_least(change: dict[str, Any], expected: str) -> None:
    among = [
        named("codes", replace(SETUP, vocab_size=8192)),
        named("each by itself", replace(SETUP, masks="random")),
        named("masked", replace(SETUP, num_masked_patches=52)),
        named("large", replace(SETUP, embed_dim=512)),
        named("patches", replace(SETUP, num_patches=256, num_masked_patches=104)),
        named("muon", replace(SETUP, optimiser="muon", embed_dim=256)),
        named("pixels", PIXELS),
        named("same", SETUP),
        named("short", replace(SETUP, num_images=9000)),
        named("visible", replace(SETUP, decoder="cross-attention", embed_dim=256)),
    ]
    found = nearest(replace(SETUP, **change), among)
    assert found is not None
    assert found.name == expected
    assert nearest(replace(SETUP, **change), among[::-1]) == found


def test_a_run_is_compared_with_runs_of_the_same_target_only() -> None:
    assert nearest(PIXELS, [CURVE]) is None
    assert nearest(PIXELS, [CURVE, named("pixels", replace(PIXELS, depth=24))]) == named(
        "pixels", replace(PIXELS, depth=24)
    )
    assert nearest(SETUP, []) is None


def test_the_distance_is_a_sum_of_logarithms() -> None:
    other = replace(
        SETUP, vocab_size=512, num_patches=128, num_masked_patches=13, embed_dim=256, depth=3, num_images=600_000
    )
    # half the codes, twice the patches, a quarter of the share masked, four times the width squared, half the blocks
    assert SETUP.distance(other) == pytest.approx((0, (1 + 1 + 2 + 1) * math.log(2), math.log(2)))
    assert SETUP.distance(other) == other.distance(SETUP)
    assert SETUP.distance(SETUP) == (0, 0, 0)


def test_what_is_another_number_is_named() -> None:
    other = replace(SETUP, vocab_size=512, num_masked_patches=32, depth=12)
    assert other.differences(SETUP) == ["512 visual tokens (1024)", "50 % masked (41)", "12 blocks (6)"]
    assert SETUP.differences(SETUP) == []
    assert replace(PIXELS, embed_dim=64).differences(PIXELS) == ["64 wide (128)"]


@pytest.mark.parametrize(
    ("gain", "reference", "target", "expected"),
    [
        (0.60, 0.5, "tokens", "as far"),  # 0.1 nats
        (0.61, 0.5, "tokens", "ahead"),
        (0.39, 0.5, "tokens", "behind"),
        (1.81, 2.0, "tokens", "as far"),  # a tenth
        (1.79, 2.0, "tokens", "behind"),
        (2.21, 2.0, "tokens", "ahead"),
        (-0.05, 0.0, "tokens", "as far"),
        (0.23, 0.2, "pixels", "as far"),  # 0.03
        (0.16, 0.2, "pixels", "behind"),
        (0.54, 0.5, "pixels", "as far"),
        (0.56, 0.5, "pixels", "ahead"),
    ],
)
def test_what_a_difference_is_called(gain: float, reference: float, target: Any, expected: str) -> None:
    assert standing(gain - 1e-9 * (gain > reference), reference, target) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": (), "loss": ()}, "a reference of 0 points; use 1 to 60"),
        ({"images": tuple(range(1, 62)), "loss": (1.0,) * 61}, "a reference of 61 points; use 1 to 60"),
        ({"loss": (1.0, 2.0)}, "3 numbers of images and 2 losses"),
        ({"images": (100, 100, 200)}, "numbers of images that do not rise"),
        ({"images": (0, 100, 200)}, "numbers of images that do not rise"),
    ],
)
def test_a_curve_that_is_none(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        replace(CURVE, **change)


def test_tokens_have_a_vocabulary_and_pixels_none() -> None:
    with pytest.raises(UsageError, match=r"^tokens without a vocabulary$"):
        replace(SETUP, vocab_size=None)
    with pytest.raises(UsageError, match=r"^pixels with a vocabulary$"):
        replace(SETUP, target="pixels")


def test_the_vocabulary_of_a_run_is_in_its_result() -> None:
    assert vocab_size_of({"bound": {"uniform_rate_nats_per_patch": math.log(8192)}}) == 8192
    assert vocab_size_of({"pixel_loss": 0.5}) is None


def test_the_curves_of_the_package_are_read_in_the_order_of_their_names() -> None:
    found = references()
    assert [reference.name for reference in found] == sorted(reference.name for reference in found)
    for reference in found:
        assert from_json(Reference, to_json(reference)) == reference
        assert 0 < reference.held_out_gain < reference.baseline
        assert reference.images[-1] == reference.setup.num_images
        assert reference.loss[-1] < reference.loss[0]
        assert nearest(reference.setup, found) == reference
