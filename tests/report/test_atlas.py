"""The codebook on a page."""

import re

import numpy as np
import pytest

from smalti.report.pictures import Card, atlas
from tests.report.reading import pictures_in


def card(number: int, share: float, examples: int = 2) -> Card:
    patches = np.full((examples, 2, 2, 1), 100 + number, np.uint8)
    return Card(number, share, np.full((2, 2, 1), number, np.uint8), patches)


def test_each_code_shows_its_prototype_then_its_patches_and_says_how_often_it_occurs() -> None:
    html = atlas([card(2, 0.7), card(0, 0.3, examples=1)], [30, 0, 70])
    assert [int(picture[0, 0]) for picture in pictures_in(html)] == [2, 102, 102, 0, 100]
    assert re.findall(r'<div title="(.*?)"', html) == ["token 2: 70 %", "token 0: 30 %"]
    assert "2 of 3 visual tokens occur; the most frequent takes 70 % of the positions. These do not: 1." in html


def test_what_is_left_out_is_counted() -> None:
    html = atlas([card(5, 0.5)], [0] * 5 + [2, 2] + [0] * 300)
    assert "The 1 most frequent are shown." in html
    assert "199, 200, 201 and 105 more." in html


def test_after_the_32_most_frequent_the_codebook_is_folded() -> None:
    html = atlas([card(number, 0.02) for number in range(40)], [2] * 40)
    shown, folded = html.split("<details>")
    assert (shown.count("<div title"), folded.count("<div title")) == (32, 8)
    assert "<summary>8 more</summary>" in folded
    assert "<details>" not in atlas([card(number, 0.02) for number in range(32)], [2] * 32)


def test_a_codebook_that_is_used_whole_has_no_dead_codes() -> None:
    html = atlas([card(0, 0.5), card(1, 0.5)], [4, 4])
    assert "These do not" not in html
    assert "most frequent are shown" not in html


def test_a_codebook_nobody_used() -> None:
    assert "0 of 2 visual tokens occur; the most frequent takes 0 % of the positions. These do not: 0, 1." in atlas(
        [], [0, 0]
    )


def test_a_card_without_a_count_is_refused() -> None:
    with pytest.raises(ValueError, match="not among the 2 codes"):
        atlas([card(2, 1.0)], [1, 1])
