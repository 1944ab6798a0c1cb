"""What codes tell: known amounts, and nothing where there is nothing, however few the tokens."""

import numpy as np
import pytest
import torch

from smalti.evaluation.code_information import code_information, figures_of, mean_colours
from smalti.functional.metrics import mutual_information
from tests import oracles

ALL = torch.ones(200, 16, dtype=torch.bool)


def noise(count: int = 200, channels: int = 3) -> torch.Tensor:
    """16 patches of 4 x 4 an image, each of another colour, uint8."""
    rng = torch.Generator().manual_seed(0)
    colours = torch.randint(256, (count, channels, 4, 4), generator=rng)
    return colours.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)


def drawn(most: int, count: int = 200) -> torch.Tensor:
    return torch.randint(most, (count, 16), generator=torch.Generator().manual_seed(most))


@pytest.mark.parametrize("values", [(2, 3), (7, 1), (40, 40)])
def test_mutual_information_is_that_of_the_definition(values: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.integers(most, size=300) for most in values)
    y = np.where(rng.random(300) < 0.5, x % values[1], y)
    expected = oracles.mutual_information_bits(x.tolist(), y.tolist())
    assert mutual_information(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, abs=1e-9)


def test_codes_that_are_the_position_or_the_colour_or_the_class_tell_all_of_it() -> None:
    images, labels = noise(), torch.arange(200) % 4
    colour, position = mean_colours(images, 4), torch.arange(16).expand(200, -1)
    for code, bits in ((position, (4.0, 0.0, 0.0)), (labels[:, None].expand(-1, 16), (0.0, 0.0, 2.0))):
        told = code_information(code, images, 4, ALL, labels)
        assert told.classes is not None
        for one, expected in zip((told.position, told.colour, told.classes), bits, strict=True):
            assert one.bits == pytest.approx(max(expected, one.by_chance), abs=0.03 + one.by_chance)
    told = code_information(colour, images, 4, ALL, labels)
    entropy = oracles.entropy(torch.bincount(colour.flatten()).tolist()) / np.log(2)
    assert told.colour.bits == pytest.approx(entropy)
    assert told.colour.by_chance < 1.2


def test_what_is_shared_by_chance_is_what_independent_codes_share() -> None:
    told = code_information(drawn(100), noise(), 4, ALL, torch.arange(200) % 5)
    assert told.classes is not None
    for one in (told.position, told.colour, told.classes):
        assert one.by_chance > 0.05
        assert one.bits == pytest.approx(one.by_chance, rel=0.1)


def test_tokens_of_one_image_are_not_taken_for_tokens_of_many() -> None:
    """A code for each image tells the class by chance alone; shuffled tokens, one by one, would say that it knows."""
    one_an_image = torch.arange(200)[:, None].expand(-1, 16)
    told = code_information(one_an_image, noise(), 4, ALL, torch.arange(200) % 5)
    assert told.classes is not None
    assert told.classes.by_chance == pytest.approx(told.classes.bits, rel=0.02)


def test_only_what_is_kept_counts_and_only_labelled_images_tell_their_class() -> None:
    images, codes = noise(), drawn(8)
    keep = drawn(2).bool()
    labels = torch.where(torch.arange(200) % 2 == 0, torch.arange(200) // 2 % 3, -1)
    told = code_information(codes, images, 4, keep, labels)
    changed = torch.where(keep, codes, 7)
    assert code_information(changed, images, 4, keep, labels) == told
    some = keep & (labels >= 0)[:, None]
    expected = oracles.mutual_information_bits(codes[some].tolist(), labels[:, None].expand(-1, 16)[some].tolist())
    assert told.classes is not None
    assert told.classes.bits == pytest.approx(expected)
    assert code_information(codes, images, 4, keep, torch.full((200,), -1)).classes is None
    assert figures_of(code_information(codes, images, 4, keep, None))["class_bits"] is None


@pytest.mark.parametrize(("channels", "cell"), [(1, 32), (3, 2 + 4 * 2 + 16 * 2), (5, 32)])
def test_colours_are_64_of_equal_size(channels: int, cell: int) -> None:
    assert mean_colours(torch.full((1, channels, 4, 4), 0.5), 4).tolist() == [[cell]]
    for value, number in ((0, 0), (255, 63)):
        images = torch.full((1, channels, 8, 4), value, dtype=torch.uint8)
        assert mean_colours(images, 4).tolist() == [[number, number]]
