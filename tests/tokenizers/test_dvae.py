"""The discrete VAE as a tokenizer."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from smalti.core.contracts import Batch
from smalti.core.errors import UsageError
from smalti.functional.codebook import positions_per_chunk
from smalti.tokenizers.dvae import DVAE, split
from smalti.training.objectives import DiscreteVAEObjective, Relaxation
from tests.contracts import check_tokenizer

SMALL = DVAE(vocab_size=16, stride=4, in_chans=3, width=8, depth=1)


def images(config: DVAE, num: int = 3) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(256, (num, config.in_chans, 32, 16), generator=rng, dtype=torch.uint8)


@pytest.mark.parametrize(
    "config", [SMALL, DVAE(vocab_size=512, stride=8, in_chans=1), DVAE(vocab_size=2, stride=16, width=4, depth=0)]
)
def test_contract(config: DVAE) -> None:
    check_tokenizer(config.build(), images(config))


def test_decoding_ids_is_decoding_their_one_hot_vectors() -> None:
    tokenizer = SMALL.build()
    ids = tokenizer.encode(images(SMALL))
    one_hot = F.one_hot(ids, 16).permute(0, 3, 1, 2).float()
    mean, log_scale = tokenizer.distribution(one_hot)
    assert mean.shape == log_scale.shape == (3, 3, 32, 16)
    expected = ((mean.sigmoid() - 0.1) / 0.8).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(ids), expected, rtol=1e-5, atol=1e-6)


def test_tokens_are_found_for_some_positions_at_a_time_and_are_the_most_likely_ones() -> None:
    config = DVAE(vocab_size=40, stride=4, width=8, depth=1)
    tokenizer, pictures = config.build(), images(config, num=12)
    assert positions_per_chunk(40, torch.device("cpu")) < 12 * 8 * 4
    with torch.no_grad():
        assert torch.equal(tokenizer.encode(pictures), tokenizer.logits(pictures).argmax(1))


def test_a_token_sees_its_own_patch_and_its_neighbours() -> None:
    """One residual block of 3 x 3: a changed pixel reaches the tokens around its own, and none further away."""
    tokenizer = SMALL.build()
    with torch.no_grad():
        first: Any = tokenizer.encoder[0]
        first.conv2.weight.fill_(0.1)
        picture = torch.full((1, 3, 40, 40), 0.5)
        changed = picture.clone()
        changed[:, :, 16:20, 16:20] = 0.9
        moved = (tokenizer.logits(picture) - tokenizer.logits(changed)).abs().amax(1)[0] > 1e-6
    assert moved.nonzero().tolist() == [[i, j] for i in (3, 4, 5) for j in (3, 4, 5)]


def test_the_same_seed_gives_the_same_weights() -> None:
    one, same, other = (SMALL.build(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["codebook.weight"], other["codebook.weight"])


def test_it_starts_with_the_nearest_centre_of_every_patch() -> None:
    tokenizer = SMALL.build()
    tokenizer.initialise_from(images(SMALL, 20), torch.arange(20 * 8 * 4))
    with torch.no_grad():
        points = tokenizer.features(images(SMALL)).permute(0, 2, 3, 1)
        distances = (points[..., None, :] - tokenizer.codebook.weight[:, :, 0, 0].t()).square().sum(-1)
        assert torch.equal(tokenizer.encode(images(SMALL)), distances.argmin(-1))


@pytest.mark.parametrize("width", [8, 48])
def test_a_start_from_hardly_more_patches_than_codes_is_no_certainty(width: int) -> None:
    """Each patch has a centre of its own then, but what is near it in other images has not."""
    tokenizer = DVAE(vocab_size=64, stride=4, width=width, depth=0).build()
    tokenizer.initialise_from(images(SMALL, 2), torch.arange(2 * 8 * 4))
    objective = DiscreteVAEObjective(tokenizer, Relaxation(), 100)
    other = images(SMALL, 4)[2:]
    batch = Batch(other, torch.arange(2), torch.arange(2))
    output = objective(batch, torch.tensor(0))
    assert float(output.loss_sum.detach() / output.weight) < 30  # of white noise; it was 2000


def test_a_split_code_takes_the_positions_that_its_parent_fits_best() -> None:
    tokenizer = DVAE(vocab_size=16, stride=4, width=8, depth=0).build()
    pictures = images(SMALL, 20)
    tokenizer.initialise_from(pictures, torch.arange(20 * 8 * 4))
    ids = tokenizer.encode(pictures)
    parent, dead = (
        torch.bincount(ids.flatten(), minlength=16).argsort(descending=True, stable=True)[i] for i in (0, 1)
    )
    with torch.no_grad():
        tokenizer.to_logits.bias[dead] = -1e9  # type: ignore[index]
        scores = tokenizer.logits(pictures)[:, parent]
        before = tokenizer.encode(pictures)
        mean = scores[before == parent].mean()
        split(tokenizer, dead[None], parent[None], mean[None])
        after = tokenizer.encode(pictures)
    assert not (before == dead).any()
    of_parent = before == parent
    assert torch.equal(after[of_parent] == dead, scores[of_parent] > mean)
    assert 0 < int((after == dead).sum()) < int(of_parent.sum())
    own = torch.full((1, 1, 1), int(dead))
    assert torch.equal(tokenizer.decode(own), tokenizer.decode(torch.full((1, 1, 1), int(parent))))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 1}, "a vocabulary of 1"),
        ({"vocab_size": 10**6}, "a vocabulary of 1000000"),
        ({"stride": 3}, "a stride of 3 pixels; use 4, 8 or 16"),
        ({"width": 0}, "a width of 0"),
        ({"depth": -1}, "a depth of -1"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DVAE(**fields)
