"""The images a tokenizer is measured on."""

import torch

from smalti.evaluation.token_sample import sample_index
from smalti.functional.patches import varied_patches


def images(count: int = 40) -> torch.Tensor:
    """Of each image's four patches one is constant."""
    pixels = torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[:, :, :4, :4] = 7
    return pixels


def test_it_has_enough_patches_that_are_not_constant_and_no_image_too_many() -> None:
    for tokens in (1, 3, 4, 59, 60):
        seen = images()[sample_index(images(), 4, tokens)]
        assert 3 * (len(seen) - 1) < tokens <= 3 * len(seen)
        assert int(varied_patches(seen, 4).sum()) == 3 * len(seen)


def test_few_images_are_all_taken_as_they_are() -> None:
    assert sample_index(images(), 4, 120).tolist() == list(range(40))
    assert sample_index(images(), 4, 10**6).tolist() == list(range(40))
    assert sample_index(torch.zeros(3, 1, 8, 8), 4, 10).tolist() == [0, 1, 2]


def test_it_depends_on_the_images_alone_and_spreads_over_them() -> None:
    few, more = (sample_index(images(300), 4, tokens).tolist() for tokens in (150, 450))
    assert few == sorted(few)
    assert min(few) < 60
    assert max(few) > 240
    assert all(image in more for image in few), "a larger window holds the smaller one"
