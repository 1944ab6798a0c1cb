"""Transformed batches are the given ones with every transform applied in order."""

from dataclasses import replace

import torch

from smalti.core.contracts import Batch, Batches
from smalti.core.rng import fold, signed
from smalti.data.transforms.batch_transforms import TransformedBatches, keys_of

CPU = torch.device("cpu")


class Counting:
    """Batches of one number, the step."""

    wait_seconds = 1.5
    closed = False

    def __call__(self, step: int) -> Batch:
        return Batch(torch.full((2, 1, 1, 1), float(step)), torch.arange(2), torch.arange(2))

    def close(self) -> None:
        self.closed = True


def doubled(batch: Batch) -> Batch:
    return replace(batch, image=batch.image * 2)


def increased(batch: Batch) -> Batch:
    return replace(batch, image=batch.image + 1)


def test_transforms_are_applied_in_order() -> None:
    batches = Counting()
    transformed = TransformedBatches(batches, transforms=(increased, doubled), device=CPU)
    assert isinstance(transformed, Batches)
    assert transformed(3).image.flatten().tolist() == [8, 8]
    assert transformed.wait_seconds == 1.5
    transformed.close()
    assert batches.closed


def test_keys_are_those_that_the_batch_was_given() -> None:
    keys = fold(3, torch.arange(4).numpy())
    batch = Batch(torch.zeros(4, 1, 1, 1), torch.arange(4), torch.from_numpy(signed(keys)))
    assert (keys_of(batch) == keys).all()
