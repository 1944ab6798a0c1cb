"""The size of a codebook against its rule."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from smalti.core.errors import UsageError
from smalti.functional.codebook import default_vocab_size


@given(st.integers(1, 10**8), st.integers(1, 1024))
def test_it_is_the_greatest_power_of_two_that_the_rule_allows(images: int, tokens: int) -> None:
    allowed = [2**power for power in range(6, 14) if 500 * 2**power <= images * tokens]
    assert default_vocab_size(images, tokens) == max(allowed, default=64)


@pytest.mark.parametrize(
    ("images", "tokens", "codes"),
    [(10_000, 64, 1024), (1, 1, 64), (499, 64, 64), (1000, 64, 128), (1_281_167, 196, 8192), (8192 * 500, 1, 8192)],
)
def test_known_sizes(images: int, tokens: int, codes: int) -> None:
    assert default_vocab_size(images, tokens) == codes


def test_no_images_have_no_vocabulary() -> None:
    with pytest.raises(UsageError, match="0 images of 4 tokens"):
        default_vocab_size(0, 4)
