"""How many visual tokens a data set can fill with meaning."""

from smalti.core.config import require

FEWEST, MOST = 64, 8192
_SEEN = 500
"""Tokens of the training images, each seen once, for one code."""


def vocabulary_for(num_images: int, tokens_an_image: int) -> int:
    """The size of a codebook by the size of the data set: the greatest power of two with 500 tokens a code.

    Args:
        num_images: images to learn from.
        tokens_an_image: N, visual tokens of one of them.

    Returns:
        64 to 8192.

    Example:
        >>> vocabulary_for(10_000, 64)
        1024

    Reference: BEiT §2.1.2 uses 8192, with 250 million images.
    """
    require(num_images >= 1 and tokens_an_image >= 1, f"{num_images} images of {tokens_an_image} tokens")
    codes = num_images * tokens_an_image // _SEEN
    return min(max(1 << codes.bit_length() >> 1, FEWEST), MOST)
