"""Which images a step sees: for any batch size, any number of processes, any number of views."""

import numpy as np
import pytest

from smalti.core.errors import UsageError
from smalti.core.rng import fold
from smalti.data.loader import Sampler


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_parts_of_a_batch_are_the_batch_on_any_number_of_processes(world: int) -> None:
    whole = Sampler(50, 8, seed=3)
    for step in (0, 5, 6, 40):
        parts = [Sampler(50, 8, 3, (rank, world))(step) for rank in range(world)]
        for name in ("index", "keys", "view_epoch", "view_keys"):
            assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole(step), name))


def test_keys_are_hashes_of_seed_epoch_and_index() -> None:
    rows = Sampler(10, 4, seed=7)(6)  # images 24 to 27 of the stream: the third epoch
    assert rows.view_epoch.tolist() == [2, 2, 2, 2]
    assert np.array_equal(rows.keys, fold(7, 2, rows.index))
    assert np.array_equal(rows.view_keys, rows.keys)


def test_cycled_views_come_back_while_everything_else_goes_on() -> None:
    order = Sampler(6, 6, seed=0, num_views=2)
    epochs = [order(step) for step in range(4)]
    views = [dict(zip(rows.index.tolist(), rows.view_keys.tolist(), strict=True)) for rows in epochs]
    assert views[0] == views[2]
    assert views[1] == views[3]
    assert views[0] != views[1]
    assert len({tuple(rows.index.tolist()) for rows in epochs}) == 4, "the order is a new one every epoch"
    assert len(set(np.concatenate([rows.keys for rows in epochs]).tolist())) == 24, "masks and noise are, too"
    assert [rows.view_epoch[0] for rows in epochs] == [0, 1, 0, 1]


def test_rows_of_given_images() -> None:
    order = Sampler(10, 4, seed=1)
    rows = order(2)
    again = order.rows(rows.index, rows.view_epoch)
    assert np.array_equal(again.keys, rows.keys)


def test_no_image_of_a_batch_is_lost_between_processes() -> None:
    with pytest.raises(
        UsageError, match="a batch of 10 images does not divide into 4 equal parts; use a multiple of 4"
    ):
        Sampler(50, 10, 0, (0, 4))
    with pytest.raises(UsageError, match="part 2 of 2; count parts from 0"):
        Sampler(50, 10, 0, (2, 2))
