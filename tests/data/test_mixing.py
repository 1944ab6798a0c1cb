"""Mixup and CutMix: pixels and labels are mixed by the same shares, drawn from the keys alone."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smalti.core.contracts import Batch
from smalti.core.errors import UsageError
from smalti.core.rng import fold, signed
from smalti.data.transforms.batch_transforms import Mixing, beta
from tests import oracles

KEYS = fold(5, np.arange(4000))


def batch_of(num: int = 8, size: tuple[int, int] = (6, 9)) -> Batch:
    rng = torch.Generator().manual_seed(0)
    return Batch(
        image=torch.rand(num, 3, *size, generator=rng),
        index=torch.arange(num),
        key=torch.from_numpy(signed(fold(np.arange(num)))),
        label=torch.arange(num) % 5,
    )


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0), Mixing(mixup=0.8, cutmix=1.0)])
def test_images_and_labels_are_mixed_with_those_at_the_mirrored_place(mixing: Mixing) -> None:
    batch = batch_of()
    assert batch.label is not None
    mixed = mixing(batch, 5)
    kept = np.broadcast_to(mixing.kept(fold(np.arange(8)), 6, 9).numpy(), (8, 6, 9))
    one_hot = F.one_hot(batch.label, 5).double().numpy()
    assert mixed.target is not None
    assert mixed.label is not None
    for i in range(8):
        expected = oracles.mixed_pair(batch.image[i].numpy(), batch.image[7 - i].numpy(), kept[i])
        np.testing.assert_allclose(mixed.image[i].numpy(), expected, atol=1e-6)
        share = kept[i].mean()
        np.testing.assert_allclose(mixed.target[i], share * one_hot[i] + (1 - share) * one_hot[7 - i], atol=1e-6)
    assert torch.equal(mixed.label, batch.label)


def test_cutmix_puts_a_box_of_the_other_image_into_each() -> None:
    kept = Mixing(cutmix=1.0).kept(KEYS[:500], 32, 32).numpy()
    assert set(np.unique(kept)) == {0.0, 1.0}
    for one in kept:
        rows, columns = np.flatnonzero((one == 0).any(1)), np.flatnonzero((one == 0).any(0))
        inside = one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else one[:0]
        assert (inside == 0).all(), "the box has no holes"
        assert (one == 0).sum() == inside.size
    # E of the area that is left: a centre anywhere, so that the borders cut off a part of most boxes
    assert 0.55 < kept.mean() < 0.75


def test_mixup_is_the_same_everywhere_in_an_image() -> None:
    assert Mixing(mixup=0.8).kept(KEYS[:5], 32, 32).numpy().shape == (5, 1, 1)


@pytest.mark.parametrize(("switch", "share"), [(0.0, 0.0), (0.3, 0.3), (1.0, 1.0)])
def test_the_kind_is_chosen_image_by_image(switch: float, share: float) -> None:
    kept = np.broadcast_to(Mixing(0.8, 1.0, switch=switch).kept(KEYS, 8, 8).numpy(), (len(KEYS), 8, 8))
    mixup = (np.ptp(kept, axis=(1, 2)) == 0) & (kept[:, 0, 0] > 0) & (kept[:, 0, 0] < 1)
    assert 1 - mixup.mean() == pytest.approx(share, abs=0.03)


def test_some_images_stay_as_they_are() -> None:
    kept = Mixing(0.8, probability=0.25).kept(KEYS, 8, 8).numpy()
    assert (kept == 1).mean() == pytest.approx(0.75, abs=0.03)


def test_cutmix_leaves_some_images_as_they_are_too() -> None:
    kept = Mixing(cutmix=1.0, probability=0.25).kept(KEYS, 32, 32).numpy()
    assert (kept == 1).all((1, 2)).mean() == pytest.approx(0.75, abs=0.03)


def test_rows_and_columns_of_boxes_are_drawn_apart() -> None:
    boxes = Mixing(cutmix=1.0).kept(KEYS, 32, 32).numpy() == 0
    boxes = boxes[boxes.any((1, 2))]
    middles = [(boxes.any(axis) * np.arange(32)).sum(1) / boxes.any(axis).sum(1) for axis in (1, 2)]
    assert abs(np.corrcoef(*middles)[0, 1]) < 0.07


@pytest.mark.parametrize("mixing", [Mixing(0.8, probability=0.25), Mixing(0.8, 1.0)])
def test_shares_depend_neither_on_which_images_are_mixed_nor_on_the_other_kind(mixing: Mixing) -> None:
    kept = np.broadcast_to(mixing.kept(KEYS, 8, 8).numpy(), (len(KEYS), 8, 8))
    share = kept[(np.ptp(kept, axis=(1, 2)) == 0) & (kept[:, 0, 0] > 0) & (kept[:, 0, 0] < 1)][:, 0, 0]
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert share.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.007)


def test_what_is_drawn_depends_on_the_key_of_the_image_alone() -> None:
    mixing = Mixing(0.8, 1.0)
    together = np.broadcast_to(mixing.kept(KEYS[:50], 8, 8).numpy(), (50, 8, 8))
    assert np.array_equal(together[20:30], np.broadcast_to(mixing.kept(KEYS[20:30], 8, 8).numpy(), (10, 8, 8)))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_shares_are_drawn_from_a_beta_distribution(alpha: float) -> None:
    drawn = beta(KEYS, np.full(len(KEYS), alpha))
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)
    fourth = ((drawn - 0.5) ** 4).mean()
    expected = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert fourth == pytest.approx(expected, rel=0.08)


def test_labels_that_are_shares_already_are_mixed_further() -> None:
    batch = Mixing(mixup=0.8)(batch_of(), 5)
    assert batch.target is not None
    twice = Mixing(mixup=0.8)(batch, 5)
    assert twice.target is not None
    torch.testing.assert_close(twice.target.sum(1), torch.ones(8))
    assert (twice.target > 0).sum() >= (batch.target > 0).sum()


@pytest.mark.parametrize(
    ("mixing", "on"), [(Mixing(), False), (Mixing(0.1), True), (Mixing(0.0, 1.0), True), (Mixing(1.0, 1.0, 0.0), False)]
)
def test_it_says_whether_it_does_anything(mixing: Mixing, on: bool) -> None:
    assert mixing.on is on


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixup": 1.5}, "a mixup of 1.5; use 0 to 1"),
        ({"cutmix": -0.1}, "a cutmix of -0.1; use 0 to 1"),
        ({"probability": 2.0}, "a probability of mixing of 2.0; use 0 to 1"),
        ({"switch": 2.0}, "a switch of mixing of 2.0; use 0 to 1"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Mixing(**fields)
