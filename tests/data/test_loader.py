"""Batches as pure functions of the step."""

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch

from smalti.core.contracts import Batch, Grid, Masking
from smalti.core.rng import Stream, fold
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.loader import InMemoryViewSource, Loader, Sampler
from smalti.data.transforms.augment import resample
from smalti.data.transforms.views import NO_JITTER, ColorJitter, RandomResizedCrop, TwoViews, WholeImage
from smalti.functional.masking import Blockwise, Random
from smalti.functional.published_masking import Algorithm1, Release


def source(length: int, side: int = 8) -> InMemoryDataset:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (length, 3, side, side), generator=rng, dtype=torch.uint8)
    return InMemoryDataset(images, torch.arange(length) % 4, ("a", "b", "c", "d"))


def loader(length: int = 10, batch_size: int = 4, seed: int = 0, part: tuple[int, int] = (0, 1)) -> Loader:
    view_source = InMemoryViewSource(source(length), TwoViews(RandomResizedCrop(), (8, 8), (4, 4), ColorJitter()))
    return Loader(view_source, Sampler(length, batch_size, seed, part), masking=Random(), grid=(4, 4))


def whole(images: InMemoryDataset, batch_size: int, masking: Masking | None = None, grid: Grid = (0, 0)) -> Loader:
    view_source = InMemoryViewSource(images, TwoViews(WholeImage(), (8, 8)))
    return Loader(view_source, Sampler(len(images), batch_size, 0), masking, grid)


def same(one: Batch, other: Batch) -> bool:
    """Whether both have the same fields, and these are equal, bit by bit."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    there = [(a, b) for a, b in pairs if a is not None or b is not None]
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in there)


def test_a_batch_is_a_function_of_the_step() -> None:
    forwards, backwards = loader(), loader()
    batches = [forwards(step) for step in range(6)]
    for step in reversed(range(6)):
        assert same(backwards(step), batches[step])


def test_other_seeds_give_other_batches() -> None:
    assert not same(loader(seed=0)(0), loader(seed=1)(0))


@pytest.mark.parametrize(("length", "batch_size"), [(10, 4), (10, 5), (10, 10), (3, 8), (1, 4), (7, 1)])
def test_every_image_comes_once_an_epoch(length: int, batch_size: int) -> None:
    batches = loader(length, batch_size)
    steps = -(-length * 6 // batch_size)
    stream = torch.cat([batches(step).index for step in range(steps)])[: length * 6]
    for epoch in stream.reshape(6, length):
        assert sorted(epoch.tolist()) == list(range(length))


def test_epochs_have_different_orders() -> None:
    batches = loader(50, 50)
    assert len({tuple(batches(step).index.tolist()) for step in range(5)}) == 5


def test_an_image_that_comes_twice_in_a_batch_is_seen_differently() -> None:
    batch = loader(length=2, batch_size=6)(0)
    assert Counter(batch.index.tolist()) == {0: 3, 1: 3}
    assert len(torch.unique(batch.key)) == 6
    assert len(torch.unique(batch.image, dim=0)) == 6


def test_a_sample_depends_on_seed_epoch_and_index_not_on_the_batch_size() -> None:
    small, large = loader(10, 2), loader(10, 10)
    whole = large(1)
    parts = [small(step) for step in range(5, 10)]
    assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
    assert torch.equal(torch.cat([part.key for part in parts]), whole.key)
    torch.testing.assert_close(torch.cat([part.image for part in parts]), whole.image)
    assert whole.mask is not None
    assert all(part.mask is not None for part in parts)
    assert torch.equal(torch.cat([part.mask for part in parts if part.mask is not None]), whole.mask)


def test_shapes_types_and_labels() -> None:
    batch = loader(10, 4)(3)
    assert batch.image.shape == (4, 3, 8, 8)
    assert batch.image.dtype == torch.float32
    assert batch.token_image is not None
    assert batch.token_image.shape == (4, 3, 4, 4)
    assert batch.label is not None
    assert torch.equal(batch.label, batch.index % 4)
    assert batch.key.dtype == torch.int64
    assert batch.ids is None
    assert float(batch.image.min()) >= 0
    assert float(batch.image.max()) <= 1


@pytest.mark.parametrize("masking", [Random(), Blockwise(ratio=0.6), Release(), Algorithm1()])
def test_the_fields_of_the_mask_agree(masking: Masking) -> None:
    batch = whole(source(9), 9, masking, (5, 3))(0)
    assert batch.mask is not None
    assert batch.mask_index is not None
    assert batch.mask_weight is not None
    assert batch.mask.shape == (9, 15)
    assert batch.mask_index.shape == batch.mask_weight.shape == (9, masking.count((5, 3)))
    assert torch.equal(batch.mask_weight.sum(1), batch.mask.sum(1).float())
    rebuilt = torch.zeros_like(batch.mask).scatter_(1, batch.mask_index, batch.mask_weight.bool())
    assert torch.equal(rebuilt, batch.mask)


def test_without_masking_there_is_no_mask_and_without_token_size_no_second_view() -> None:
    batch = whole(source(4), 2)(0)
    assert batch.mask is batch.mask_index is batch.mask_weight is batch.token_image is None


def test_masks_crops_and_noise_are_drawn_from_different_keys() -> None:
    batch = loader(10, 10)(0)
    keys = fold(0, 0, batch.index.numpy())
    assert np.array_equal(fold(keys, Stream.NOISE).view(np.int64), batch.key.numpy())
    assert batch.mask is not None
    assert np.array_equal(Random()(fold(keys, Stream.MASK), (4, 4)), batch.mask.numpy())


def test_both_views_show_the_same_crop() -> None:
    """A flat gradient has the same mean in both views of a crop, and another one in another crop."""
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(6, 1, 32, 32)
    images = InMemoryDataset(ramp, torch.zeros(6, dtype=torch.int64))
    batch = Loader(InMemoryViewSource(images, TwoViews(RandomResizedCrop(), (16, 16), (8, 8))), Sampler(6, 6, 0))(0)
    assert batch.token_image is not None
    means, token_means = batch.image.mean((1, 2, 3)), batch.token_image.mean((1, 2, 3))
    torch.testing.assert_close(means, token_means, rtol=0, atol=0.01)
    assert float(means.std()) > 0.03
    slopes = batch.image[..., -1].mean((1, 2)) > batch.image[..., 0].mean((1, 2))
    token_slopes = batch.token_image[..., -1].mean((1, 2)) > batch.token_image[..., 0].mean((1, 2))
    assert torch.equal(slopes, token_slopes)


def test_the_view_of_the_network_is_bicubic_and_that_of_the_tokenizer_lanczos() -> None:
    images, order, crops = source(6, side=32), Sampler(6, 6, 0), RandomResizedCrop()
    batch = Loader(InMemoryViewSource(images, TwoViews(crops, (16, 16), (8, 8))), order)(0)
    shown, crop = images.images[batch.index], crops(order(0).view_keys, 32, 32)
    assert batch.token_image is not None
    assert torch.equal(batch.image, resample(shown, crop, (16, 16), "bicubic"))
    assert torch.equal(batch.token_image, resample(shown, crop, (8, 8), "lanczos"))


def test_contrast_turns_around_the_mean_of_what_the_crop_shows() -> None:
    ramp = torch.arange(80, 176, 3, dtype=torch.uint8).expand(6, 1, 32, 32)
    images = InMemoryDataset(ramp, torch.zeros(6, dtype=torch.int64))
    plain, changed = (
        Loader(InMemoryViewSource(images, TwoViews(RandomResizedCrop(), (16, 16), (8, 8), jitter)), Sampler(6, 6, 0))(0)
        for jitter in (NO_JITTER, ColorJitter(0.0, 0.6, 0.0))
    )
    assert plain.token_image is not None
    assert changed.token_image is not None
    assert not torch.allclose(plain.token_image, changed.token_image, atol=0.01)
    torch.testing.assert_close(changed.token_image.mean((2, 3)), plain.token_image.mean((2, 3)))


def test_a_batch_moves_to_a_device_as_a_whole() -> None:
    moved = whole(source(4), 2)(0).to(torch.device("meta"))
    assert moved.image.device.type == moved.key.device.type == "meta"
    assert moved.mask is None
