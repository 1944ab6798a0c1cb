"""Targets are written into the batch by the tokenizer, from its own view."""

import dataclasses

import torch

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.data.tokens import Tokenized
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


def test_ids_are_the_tokens_of_the_token_view_row_by_row() -> None:
    tokenizer = GreyLevels()
    result = Tokenized(batch, tokenizer, CPU)(3)
    view = batch(3).token_image
    assert view is not None
    assert torch.equal(result.ids, tokenizer.encode(view).reshape(2, 6))
    assert torch.equal(result.image, batch(3).image)


def test_without_a_token_view_the_image_itself_is_tokenised() -> None:
    tokenizer = GreyLevels()
    result = Tokenized(lambda step: dataclasses.replace(batch(step), token_image=None), tokenizer, CPU)(0)
    assert torch.equal(result.ids, tokenizer.encode(batch(0).image).reshape(2, 16))
