"""Several masks of one view: what is shared between them, and what is drawn for each."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Batches
from smalti.core.log import Log
from smalti.core.rng import Stream, fold, signed
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import Data, InMemoryData
from smalti.data.transforms.views import NO_JITTER, ColorJitter, RandomResizedCrop
from smalti.functional.masking import Blockwise, Random
from smalti.functional.published_masking import Release
from smalti.models.vit import ViT
from smalti.tokenizers.dalle import DallE
from smalti.tokenizers.dvae import DVAE
from smalti.training.masked_batches import MaskedViews, MultiMaskBatches, open_cache, training_batches

CPU = Compute(torch.device("cpu"), torch.float32)
VIT = ViT(img_size=(16, 16), patch_size=4, embed_dim=16, depth=1, num_heads=2)
TOKENIZER = DVAE(vocab_size=16, stride=4, in_chans=3, width=8).build().eval()
VIEWS = MaskedViews(RandomResizedCrop(), NO_JITTER, Random(ratio=0.5), VIT, TOKENIZER, seed=3)


def images(count: int = 20) -> InMemoryData:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)
    held = InMemoryDataset(torch.from_numpy(pixels), torch.zeros(count, dtype=torch.int64))
    return InMemoryData(held, held)


@dataclass
class Elsewhere:
    """Batches whose keys have no values here."""

    batches: Batches
    wait_seconds: float = 0.0

    def __call__(self, step: int) -> Batch:
        batch = self.batches(step)
        return replace(batch, key=torch.zeros_like(batch.key))

    def close(self) -> None:
        self.batches.close()


def batch_of(views: MaskedViews, step: int, **options: Any) -> Batch:
    return training_batches(views, images(), Data(side=16), 12, CPU, Log(), **options)(step)


@pytest.mark.parametrize("masking", [Random(ratio=0.5), Blockwise(), Release()])
@pytest.mark.parametrize("count", [2, 3])
def test_a_view_is_shown_under_masks_that_differ(count: int, masking: Any) -> None:
    views = replace(VIEWS, masking=masking)
    several, once = (batch_of(replace(views, masks_per_image=n), 0) for n in (count, 1))
    assert len(several.image) == 12
    firsts = slice(None, None, count)
    torch.testing.assert_close(several.image[firsts], once.image[: 12 // count], rtol=0, atol=0)
    for name in ("image", "index", "ids"):
        shown = getattr(several, name)
        torch.testing.assert_close(shown, shown[firsts].repeat_interleave(count, 0), rtol=0, atol=0)
    assert several.mask is not None
    assert len(several.key.unique()) == 12
    assert len({tuple(row) for row in several.mask.tolist()}) > 12 // count


def test_keys_are_drawn_from_the_order_and_not_read_from_the_device() -> None:
    views = replace(VIEWS, masks_per_image=2)
    several = training_batches(views, images(), Data(side=16), 12, CPU, Log())
    assert isinstance(several, MultiMaskBatches)
    elsewhere = replace(several, batches=Elsewhere(several.batches))
    assert several.order(2).keys.tolist() != several.order(3).keys.tolist()
    for step in (0, 2):
        assert torch.equal(elsewhere(step).key, several(step).key)
        assert several(step).key[0] == signed(fold(fold(several.batches(step).key[0].numpy(), 0), Stream.NOISE))


@pytest.mark.parametrize("posterior", [False, True])
def test_tokens_may_be_computed_in_float32_in_a_run_in_bf16(tmp_path: Path, posterior: bool) -> None:
    """The released code tokenizes outside autocast. The cache of such tokens is that of a run in float32."""
    bf16 = Compute(torch.device("cpu"), torch.bfloat16)
    tokenizer = DallE(vocab_size=16, stride=4, width=8).build().eval()
    plain = replace(VIEWS, tokenizer=tokenizer)
    views = replace(plain, fp32_tokens=True)
    compute_of = {"as the run": (plain, bf16), "float32": (views, bf16), "a run in float32": (plain, CPU)}
    seen = {
        name: training_batches(given, images(), Data(side=16), 12, compute, Log(), posterior=posterior)(0)
        for name, (given, compute) in compute_of.items()
    }
    exact, ours, rough = seen["a run in float32"], seen["float32"], seen["as the run"]
    torch.testing.assert_close(ours.ids, exact.ids, rtol=0, atol=0)
    if posterior:
        assert exact.scores is not None
        assert rough.scores is not None
        torch.testing.assert_close(ours.scores, exact.scores, rtol=0, atol=0)
        assert not torch.equal(rough.scores, exact.scores)
    there = open_cache(tmp_path / "cache", views, images().train, tokenizer, 12, bf16).key
    assert there == open_cache(tmp_path / "cache", plain, images().train, tokenizer, 12, CPU).key
    assert there.dtype == "float32"


def test_the_ids_are_those_of_the_tokenizer_and_the_scores_those_of_masked_patches() -> None:
    batch = batch_of(replace(VIEWS, masks_per_image=2), 1, posterior=True)
    logits = TOKENIZER.logits(batch.image).flatten(2)
    assert batch.scores is not None
    assert batch.mask_index is not None
    for row, index in enumerate(batch.mask_index):
        torch.testing.assert_close(batch.scores[row], logits[row, :, index].t())
    torch.testing.assert_close(batch.ids, logits.argmax(1), rtol=0, atol=0)


def test_views_that_are_cycled_come_back_under_other_masks() -> None:
    batches = training_batches(replace(VIEWS, num_views=1), images(12), Data(side=16), 12, CPU, Log())
    one, other = batches(0), batches(1)
    first, second = one.index.argsort(), other.index.argsort()
    assert torch.equal(one.image[first], other.image[second])
    assert not torch.equal(one.masks[0][first], other.masks[0][second])


def test_held_out_images_are_whole_and_have_their_own_colours() -> None:
    views, held = replace(VIEWS, jitter=ColorJitter()), images().held_out
    for batch in (views.held_out_batch(held, np.arange(3, 7)), views.held_out_loader(held, 20)(0)):
        torch.testing.assert_close(batch.image, held.images[batch.index] / 255, rtol=0, atol=1e-6)


def test_every_image_is_seen_equally_often() -> None:
    views = replace(VIEWS, masks_per_image=3)
    seen = torch.cat([batch_of(views, step).index for step in range(5)])
    assert seen.bincount().tolist() == [3] * 20


def test_the_same_step_is_the_same_batch() -> None:
    views = replace(VIEWS, masks_per_image=2)
    one, other = batch_of(views, 4), batch_of(views, 4)
    for name, value in vars(one).items():
        assert value is None or torch.equal(value, getattr(other, name))
