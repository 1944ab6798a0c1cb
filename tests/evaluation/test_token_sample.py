"""The images a tokenizer is measured on."""

import torch

from smalti.evaluation.token_sample import constant, token_sample


def images(count: int = 40) -> torch.Tensor:
    """Of each image's four patches one is constant."""
    pixels = torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[:, :, :4, :4] = 7
    return pixels


def test_it_has_enough_patches_that_are_not_constant_and_no_image_too_many() -> None:
    for tokens in (1, 3, 4, 59, 60):
        seen = token_sample(images(), 4, tokens)
        assert 3 * (len(seen) - 1) < tokens <= 3 * len(seen)
        assert int((~constant(seen, 4)).sum()) == 3 * len(seen)


def test_few_images_are_all_taken_as_they_are() -> None:
    assert torch.equal(token_sample(images(), 4, 120), images())
    assert torch.equal(token_sample(images(), 4, 10**6), images())
    assert torch.equal(token_sample(torch.zeros(3, 1, 8, 8), 4, 10), torch.zeros(3, 1, 8, 8))


def test_it_depends_on_the_images_alone_and_spreads_over_them() -> None:
    numbered = images(300)
    numbered[:, 0, 7, 7] = torch.arange(300).to(torch.uint8)
    numbered[:, 0, 7, 6] = torch.arange(300).div(256, rounding_mode="floor").to(torch.uint8)
    few, more = (token_sample(numbered, 4, tokens)[:, 0, 7, 6:].tolist() for tokens in (150, 450))
    places = [low + 256 * high for high, low in few]
    assert places == sorted(places)
    assert min(places) < 60
    assert max(places) > 240
    assert all(image in more for image in few), "a larger window holds the smaller one"
