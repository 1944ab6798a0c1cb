"""Ids from a cache are those that the tokenizer would find, however the cache came to be filled."""

import errno
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Tokenizer
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import Data, InMemoryData, RunImages, TrainingData
from smalti.data.loader import Loader, Sampler, open_view_source
from smalti.data.token_cache import CachedTokens, TokenCache, token_key
from smalti.data.tokens import CHUNK, TokenizedBatches
from smalti.data.transforms.views import ColorJitter, RandomResizedCrop, TwoViews
from smalti.functional.masking import Random
from smalti.tokenizers.dvae import DVAE, DiscreteVAE
from tests.small_runs import pictures

FP32 = Compute(torch.device("cpu"), torch.float32)
BF16 = Compute(torch.device("cpu"), torch.bfloat16)
VIEWS = TwoViews(RandomResizedCrop(), (16, 16), (8, 12), ColorJitter())
STREAMED = Data("photos", side=16, memory="stream", num_workers=0)


class Counting:
    """A tokenizer that remembers how many chunks it was given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.chunks = tokenizer, 0
        self.vocab_size, self.stride = tokenizer.vocab_size, tokenizer.stride

    def encode(self, images: Tensor) -> Tensor:
        self.chunks += 1
        return self.tokenizer.encode(images)

    def decode(self, ids: Tensor) -> Tensor:
        return self.tokenizer.decode(ids)


@pytest.fixture(scope="module")
def tokenizer() -> DiscreteVAE:
    return DVAE(64, 4, 3, 8).build(0).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def resident() -> InMemoryData:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (90, 3, 16, 16), generator=rng, dtype=torch.uint8)
    train = InMemoryDataset(images, torch.zeros(90, dtype=torch.long))
    return TrainingData(train, train.select(np.array([0])))


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> RunImages:
    photos = pictures(tmp_path_factory.mktemp("cached") / "photos", 10)
    images = replace(STREAMED, path=str(photos)).open(Log())
    assert images.bad_files is not None
    return images


@pytest.fixture(params=["resident", "streamed"])
def images(request: pytest.FixtureRequest) -> RunImages:
    found: RunImages = request.getfixturevalue(request.param)
    return found


def loader(images: RunImages, batch_size: int, num_views: int | None = None, part: tuple[int, int] = (0, 1)) -> Loader:
    view_source = open_view_source(images, VIEWS, STREAMED, batch_size // part[1], FP32.device)
    order = Sampler(len(images.train), batch_size, 5, part, num_views)
    return Loader(view_source, order, Random(), (2, 3))


def opened(folder: Path, images: RunImages, tokenizer: DiscreteVAE, compute: Compute) -> TokenCache:
    return TokenCache(folder, token_key(images.train, VIEWS, 5, tokenizer, compute))


def same(one: Batch, other: Batch) -> bool:
    """Whether all fields are equal, bit by bit."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_cached_equals_live(tmp_path: Path, images: RunImages, tokenizer: DiscreteVAE, compute: Compute) -> None:
    """While it is filled, when it is full, and in batches of other sizes; then the tokenizer does not run."""
    count = len(images.train)
    live = TokenizedBatches(loader(images, 7), tokenizer, compute)
    ids = live(0).ids
    assert ids is not None
    assert len(ids.unique()) > 4
    steps = -(-2 * count // 7)
    filling = CachedTokens(loader(images, 7), tokenizer, compute, opened(tmp_path, images, tokenizer, compute))
    assert all(same(filling(step), live(step)) for step in range(steps))
    filling.close()
    for size in (7, 4):
        unused, cache = Counting(tokenizer), opened(tmp_path, images, tokenizer, compute)
        cached = CachedTokens(loader(images, size), unused, compute, cache)
        again = TokenizedBatches(loader(images, size), tokenizer, compute)
        assert all(same(cached(step), again(step)) for step in reversed(range(2 * count // size)))
        assert unused.chunks == 0


@pytest.mark.parametrize("first", [10, 130])
def test_what_one_run_began_another_one_continues(
    tmp_path: Path, resident: InMemoryData, tokenizer: DiscreteVAE, first: int
) -> None:
    """With batches of another size, after a restart in the middle, over the end of an epoch."""
    begun = CachedTokens(loader(resident, first), tokenizer, FP32, opened(tmp_path, resident, tokenizer, FP32))
    begun(0)
    begun.close()
    live, counting = TokenizedBatches(loader(resident, 16), tokenizer, FP32), Counting(tokenizer)
    continued = CachedTokens(loader(resident, 16), counting, FP32, opened(tmp_path, resident, tokenizer, FP32))
    assert all(same(continued(step), live(step)) for step in range(12))
    assert counting.chunks == sum((step + 1) * 16 > first for step in range(12))


def test_every_rank_takes_its_part(tmp_path: Path, resident: InMemoryData, tokenizer: DiscreteVAE) -> None:
    whole = TokenizedBatches(loader(resident, 8), tokenizer, FP32)
    for rank in range(2):
        cache = opened(tmp_path, resident, tokenizer, FP32)
        part = CachedTokens(loader(resident, 8, part=(rank, 2)), tokenizer, FP32, cache)
        for step in range(3):
            expected, found = whole(step).ids, part(step).ids
            assert expected is not None
            assert found is not None
            assert torch.equal(found, expected[4 * rank : 4 * rank + 4])
    assert len(opened(tmp_path, resident, tokenizer, FP32).missing(0)) == 90 - 24


def test_only_what_is_missing_is_tokenised(tmp_path: Path, resident: InMemoryData, tokenizer: DiscreteVAE) -> None:
    cache, counting = opened(tmp_path, resident, tokenizer, FP32), Counting(tokenizer)
    batches = CachedTokens(loader(resident, 90), counting, FP32, cache)
    expected = batches(0)
    assert counting.chunks == -(-90 // CHUNK)
    with open(cache.path(0), "r+b") as file:
        file.seek(2 * 6 * 30)
        file.write(b"\0\0" * 6)
    assert same(batches(0), expected)
    assert counting.chunks == -(-90 // CHUNK) + 1
    assert cache.missing(0).size == 0


def test_views_that_are_cycled_come_back_under_other_masks(
    tmp_path: Path, images: RunImages, tokenizer: DiscreteVAE
) -> None:
    count, unused = len(images.train), Counting(tokenizer)
    batches = CachedTokens(loader(images, count, 2), tokenizer, FP32, opened(tmp_path, images, tokenizer, FP32))
    by_image = [np.argsort(batches(epoch).index.numpy()) for epoch in range(5)]
    first, second, *later = (batches(epoch) for epoch in range(5))
    assert not torch.equal(first.image[by_image[0]], second.image[by_image[1]])
    full = CachedTokens(loader(images, count, 2), unused, FP32, opened(tmp_path, images, tokenizer, FP32))
    for epoch, batch in enumerate(later, start=2):
        shown = (first, second)[epoch % 2]
        for field in ("image", "token_image", "ids"):
            before, after = getattr(shown, field)[by_image[epoch % 2]], getattr(batch, field)[by_image[epoch]]
            assert torch.equal(before, after), field
        for field in ("mask", "key"):
            before, after = getattr(shown, field)[by_image[epoch % 2]], getattr(batch, field)[by_image[epoch]]
            assert not torch.equal(before, after), field
        assert same(full(epoch), batch)
    assert unused.chunks == 0
    assert [path.name for path in sorted(tmp_path.glob("ids-*"))] == ["ids-00000.u16", "ids-00001.u16"]


def test_cycled_views_serve_a_run_that_does_not_cycle_them(
    tmp_path: Path, resident: InMemoryData, tokenizer: DiscreteVAE
) -> None:
    cycled = CachedTokens(loader(resident, 90, 2), tokenizer, FP32, opened(tmp_path, resident, tokenizer, FP32))
    for step in range(2):
        cycled(step)
    unused, live = Counting(tokenizer), TokenizedBatches(loader(resident, 90), tokenizer, FP32)
    endless = CachedTokens(loader(resident, 90), unused, FP32, opened(tmp_path, resident, tokenizer, FP32))
    assert same(endless(0), live(0))
    assert same(endless(1), live(1))
    assert unused.chunks == 0
    assert same(endless(2), live(2))
    assert unused.chunks > 0


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def no_folder(*_: object) -> int:
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(("name", "fails"), [("pwrite", no_space), ("open", no_folder)])
def test_a_cache_that_cannot_be_written_does_not_end_a_run(
    tmp_path: Path,
    resident: InMemoryData,
    tokenizer: DiscreteVAE,
    name: str,
    fails: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    live = TokenizedBatches(loader(resident, 16), tokenizer, FP32)
    batches = CachedTokens(loader(resident, 16), tokenizer, FP32, opened(tmp_path, resident, tokenizer, FP32))
    batches(0)
    cause = {"pwrite": "No space left on device", "open": "Permission denied"}[name]
    opening = os.open

    def refuse_writing(path: str, flags: int, mode: int = 0o777) -> int:
        return fails() if flags & os.O_CREAT else opening(path, flags, mode)

    monkeypatch.setattr(os, name, fails if name == "pwrite" else refuse_writing)
    batches.cache.close()
    assert all(same(batches(step), live(step)) for step in range(4))
    said = capsys.readouterr().err.replace("\n", "")
    path = batches.cache.path(0)
    assert said == f"cannot write {path}; {cause}; visual tokens are not kept any more, the run goes on"
    assert batches.cache.missing(0).size == 90 - 16


def test_another_image_in_the_place_of_an_unreadable_one_is_tokenised_live(
    tmp_path: Path, resident: InMemoryData, tokenizer: DiscreteVAE
) -> None:
    """It neither gets the ids of the image that was asked for, nor are its ids kept for that one."""
    cache, counting = opened(tmp_path, resident, tokenizer, FP32), Counting(tokenizer)
    batches = CachedTokens(loader(resident, 8), counting, FP32, cache)
    rows = batches.batches.order(0)
    good = batches.batches(0)
    view, index = good.token_image, good.index.clone()
    assert view is not None
    index[3] = (index[3] + 1) % 90
    replaced = replace(good, index=index, token_image=view.index_copy(0, torch.tensor([3]), view[4:5]))
    for _ in range(2):
        ids = batches.with_ids(replaced, rows).ids
        assert ids is not None
        assert torch.equal(ids[3], ids[4])
        assert cache.lookup(rows.view_epoch, rows.index)[1].tolist() == [True] * 3 + [False] + [True] * 4
    expected = batches.with_ids(good, rows).ids
    assert expected is not None
    assert not torch.equal(expected[3], expected[4])
    chunks = counting.chunks
    ids = batches.with_ids(replaced, rows).ids
    assert ids is not None
    assert torch.equal(ids[3], expected[4])
    assert counting.chunks == chunks + 1
    assert torch.equal(batches(0).ids, expected)  # type: ignore[arg-type]


def test_waiting_and_closing_are_those_of_the_loader(
    tmp_path: Path, resident: InMemoryData, tokenizer: DiscreteVAE
) -> None:
    before = len(os.listdir("/dev/fd"))
    batches = CachedTokens(loader(resident, 8), tokenizer, FP32, opened(tmp_path, resident, tokenizer, FP32))
    batches(0)
    batches(0)
    assert batches.wait_seconds == batches.batches.wait_seconds > 0
    assert len(os.listdir("/dev/fd")) == before + 2
    batches.close()
    assert len(os.listdir("/dev/fd")) == before
