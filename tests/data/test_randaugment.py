"""RandAugment draws operations as timm does, from the key of each image alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.contracts import Batch
from smalti.core.errors import UsageError
from smalti.core.rng import fold, signed
from smalti.data.transforms.randaugment import OPERATIONS, RandAugment

KEYS = fold(5, np.arange(6000))
BY_NAME = {operation.change.__name__: operation.amount for operation in OPERATIONS}


def batch_of(num: int) -> Batch:
    images = torch.randint(256, (num, 3, 12, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(images, torch.arange(num), torch.from_numpy(signed(fold(np.arange(num)))))


def test_operations_are_equally_likely_and_applied_as_often_as_they_are_to_be() -> None:
    kind, level, sign = RandAugment(2, probability=0.75).drawn(KEYS, 0)
    counts = np.bincount(kind + 1, minlength=16)
    assert counts[0] / len(KEYS) == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(counts[1:] / len(KEYS), 0.75 / 15, atol=0.012)
    assert sign.mean() == pytest.approx(0, abs=0.04)
    assert ((level >= 0) & (level <= 1)).all()


def test_strength_is_normal_around_the_magnitude() -> None:
    _, level, _ = RandAugment(1, magnitude=5.0, spread=0.5).drawn(KEYS, 0)
    assert level.mean() == pytest.approx(0.5, abs=0.003)
    assert level.std() == pytest.approx(0.05, abs=0.002)
    assert (RandAugment(1, spread=0.0).drawn(KEYS, 0)[1] == 0.9).all()
    assert RandAugment(1, spread=5.0).drawn(KEYS, 0)[1].max() == 1.0


@pytest.mark.parametrize(
    ("name", "amount", "opposite"),
    [
        ("rotate", 27.0, -27.0),
        ("posterize", 1.0, 1.0),
        ("solarize", 26.0, 26.0),
        ("solarize_add", 99.0, 99.0),
        ("color", 1.81, 0.19),
        ("sharpness", 1.81, 0.19),
        ("shear_x", 0.27, -0.27),
        ("translate_y", 0.405, -0.405),
    ],
)
def test_amounts_at_magnitude_nine_are_those_of_timm(name: str, amount: float, opposite: float) -> None:
    level = np.array([0.9, 0.9])
    np.testing.assert_allclose(BY_NAME[name](level, np.array([1.0, -1.0])), [amount, opposite])


def test_an_image_never_fades_altogether() -> None:
    assert BY_NAME["brightness"](np.array([1.0]), np.array([-1.0])) == pytest.approx(0.1)


def test_images_change_by_their_keys_alone() -> None:
    augment, batch = RandAugment(2), batch_of(64)
    one, again = augment(batch).image, augment(batch).image
    assert torch.equal(one, again)
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1
    some = replace(batch, image=batch.image[20:30], index=batch.index[20:30], key=batch.key[20:30])
    assert torch.equal(augment(some).image, one[20:30])
    same = (one == batch.image.float() / 255).flatten(1).all(1)
    assert 4 < int(same.sum()) < 32, "a quarter of the images has neither operation"


def test_turns_are_drawn_apart() -> None:
    first, second = (RandAugment(2).drawn(KEYS, turn)[0] for turn in (0, 1))
    assert (first == second).mean() < 0.4


def test_no_operations_leave_the_batch_as_it_is() -> None:
    batch = batch_of(3)
    assert RandAugment()(batch) is batch
    assert torch.equal(RandAugment(3, probability=0.0)(batch).image, batch.image.float() / 255)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"operations": -1}, "-1 operations; use 0 or more"),
        ({"magnitude": 11.0}, "a magnitude of 11.0; use 0 to 10"),
        ({"spread": -1.0}, "a spread of magnitudes of -1.0; use 0 or more"),
        ({"probability": 2.0}, "a probability of operations of 2.0; use 0 to 1"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RandAugment(**fields)
