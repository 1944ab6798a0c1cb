"""Targets are written into the batch by the tokenizer, from its own view, whatever else is in the batch."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.core.errors import UsageError
from smalti.data.tokens import CHUNK, Scorer, TokenizedBatches, TokenizedOnce, encode, scored, tokenized
from smalti.tokenizers.dvae import DVAE, DiscreteVAE
from tests.test_contracts import GreyLevels

CPU = Compute(torch.device("cpu"), torch.float32)


def batch(step: int) -> Batch:
    rng = torch.Generator().manual_seed(step)
    return Batch(
        image=torch.rand(2, 3, 16, 16, generator=rng),
        token_image=torch.rand(2, 3, 8, 12, generator=rng),
        index=torch.arange(2),
        key=torch.arange(2),
    )


class Steps:
    """Batches that count how they are treated."""

    wait_seconds = 2.5
    closed = 0

    def __call__(self, step: int) -> Batch:
        return batch(step)

    def close(self) -> None:
        self.closed += 1


class Recorder(GreyLevels):
    """Remembers how many images it was given at a time."""

    def encode(self, images: Tensor) -> Tensor:
        self.given = [*getattr(self, "given", []), len(images)]
        return super().encode(images)


def test_ids_are_the_tokens_of_the_token_view_row_by_row() -> None:
    tokenizer, steps = GreyLevels(), Steps()
    result = TokenizedBatches(steps, tokenizer, CPU)(3)
    view = batch(3).token_image
    assert view is not None
    assert result.ids is not None
    assert torch.equal(result.ids, tokenizer.encode(view).reshape(2, 6))
    assert torch.equal(result.image, batch(3).image)


def test_without_a_token_view_the_image_itself_is_tokenised() -> None:
    tokenizer = GreyLevels()
    result = tokenized(dataclasses.replace(batch(0), token_image=None), tokenizer, CPU)
    assert result.ids is not None
    assert torch.equal(result.ids, tokenizer.encode(batch(0).image).reshape(2, 16))


def test_waiting_and_closing_are_those_of_the_batches() -> None:
    steps = Steps()
    batches = TokenizedBatches(steps, GreyLevels(), CPU)
    assert batches.wait_seconds == 2.5
    batches.close()
    assert steps.closed == 1


def test_batches_that_are_asked_for_again_are_tokenised_once() -> None:
    tokenizer = Recorder()
    batches = TokenizedOnce(Steps(), tokenizer, CPU)
    for step in (0, 1, 1, 0):
        asked, live = batches(step), TokenizedBatches(Steps(), GreyLevels(), CPU)(step)
        assert asked.ids is not None
        assert live.ids is not None
        assert torch.equal(asked.ids, live.ids)
        assert torch.equal(asked.image, live.image)
    assert tokenizer.given == [CHUNK] * 2


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 2])
def test_a_tokenizer_always_sees_a_whole_chunk(count: int, rng: torch.Generator) -> None:
    tokenizer, view = Recorder(), torch.rand(count, 3, 8, 8, generator=rng)
    assert torch.equal(encode(view, tokenizer, CPU), GreyLevels().encode(view).reshape(count, 4))
    assert tokenizer.given == [CHUNK] * -(-count // CHUNK)


def spread(dvae: DVAE) -> DiscreteVAE:
    """A tokenizer whose residual blocks do something; they start at zero."""
    tokenizer, rng = dvae.build(0), torch.Generator().manual_seed(1)
    for block in tokenizer.encoder:
        assert isinstance(block.conv2, torch.nn.Conv2d)
        block.conv2.weight.data += 0.05 * torch.randn(block.conv2.weight.shape, generator=rng)
    return tokenizer.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dvae", [DVAE(64, 4, 1, 32), DVAE(64, 8, 3, 48)], ids=["grey", "rgb"])
def test_ids_depend_on_neither_the_size_nor_the_order_nor_the_rest_of_the_batch(
    dvae: DVAE, dtype: torch.dtype, rng: torch.Generator
) -> None:
    compute, tokenizer = Compute(torch.device("cpu"), dtype), spread(dvae)
    view = torch.randint(256, (150, dvae.in_chans, 32, 32), generator=rng, dtype=torch.uint8)
    ids = encode(view, tokenizer, compute)
    assert len(ids.unique()) > 10
    shuffled = torch.randperm(150, generator=rng)
    assert torch.equal(encode(view[shuffled], tokenizer, compute), ids[shuffled])
    for size in (1, 37, 64):
        assert torch.equal(torch.cat([encode(part, tokenizer, compute) for part in view.split(size)]), ids)


def test_scores_are_those_of_the_tokenizer_at_the_hidden_patches(rng: torch.Generator) -> None:
    tokenizer = spread(DVAE(64, 4, 3, 32))
    view, index = torch.rand(37, 3, 8, 12, generator=rng), torch.randint(6, (37, 4), generator=rng)
    ids, scores = scored(view, tokenizer, index, CPU)
    with torch.no_grad():
        logits = tokenizer.logits(view).flatten(2)
    assert torch.equal(ids, tokenizer.encode(view).flatten(1))
    for b in range(37):
        torch.testing.assert_close(scores[b], logits[b, :, index[b]].t())


def test_batches_with_scores_have_the_ids_too() -> None:
    tokenizer = spread(DVAE(64, 4, 3, 32))
    assert isinstance(tokenizer, Scorer)
    assert not isinstance(GreyLevels(), Scorer)

    class Masked(Steps):
        def __call__(self, step: int) -> Batch:
            return dataclasses.replace(batch(step), mask_index=torch.tensor([[0, 5], [3, 4]]))

    both, hard = (TokenizedBatches(Masked(), tokenizer, CPU, posterior=posterior)(1) for posterior in (True, False))
    assert hard.scores is None
    assert both.scores is not None
    assert torch.equal(both.ids, hard.ids)  # type: ignore[arg-type]
    assert torch.equal(both.scores.argmax(-1), both.ids.gather(1, both.mask_index))  # type: ignore[arg-type, union-attr]
    assert not both.scores.requires_grad


class Reshaped(GreyLevels):
    """Returns the tokens of its base in another form."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.form = form

    def encode(self, images: Tensor) -> Tensor:
        return self.form(super().encode(images))


@pytest.mark.parametrize(
    ("form", "found"),
    [
        (lambda ids: ids.repeat_interleave(2, 1).repeat_interleave(2, 2), r"torch.int64 \(2, 4, 6\)"),
        (lambda ids: ids[:, :1], r"torch.int64 \(2, 1, 3\)"),
        (lambda ids: ids.flatten(1), r"torch.int64 \(2, 6\)"),
        (lambda ids: ids.float(), r"torch.float32 \(2, 2, 3\)"),
    ],
)
def test_tokens_that_are_not_one_a_stride_are_refused(form: Callable[[Tensor], Tensor], found: str) -> None:
    """Four tokens a patch would be learned, each at the place of another patch."""
    message = f"Reshaped makes {found} of 2 images of 8x12; return int64 .2, 2, 3.: a token for each 4 x 4 pixels"
    with pytest.raises(UsageError, match=message):
        encode(torch.rand(2, 3, 8, 12), Reshaped(form), CPU, chunk=2)


def test_scores_that_are_not_those_of_one_token_a_stride_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = spread(DVAE(64, 4, 3, 32))
    logits = tokenizer.logits
    monkeypatch.setattr(tokenizer, "logits", lambda images: logits(images).repeat_interleave(2, 3))
    message = r"makes torch.float32 \(2, 64, 2, 6\) of 2 images of 8x12; return float32 .2, 64, 2, 3.: a token"
    with pytest.raises(UsageError, match=message):
        scored(torch.rand(2, 3, 8, 12), tokenizer, None, CPU)
