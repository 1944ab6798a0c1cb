"""The size of a codebook by the size of the dataset."""

from smalti.core.config import require

FEWEST, MOST = 64, 8192
_SEEN = 500
"""Visual tokens of the training images per code, each image counted once."""


def vocabulary_for(num_images: int, tokens_an_image: int) -> int:
    """The greatest power of two that leaves 500 visual tokens of the training images per code.

    Args:
        num_images: training images.
        tokens_an_image: N, visual tokens per image.

    Returns:
        V, in [64, 8192].

    Example:
        >>> vocabulary_for(10_000, 64)
        1024

    Reference: BEiT §2.1.2 uses 8192, with 250 million images.
    """
    require(num_images >= 1 and tokens_an_image >= 1, f"{num_images} images of {tokens_an_image} tokens")
    codes = num_images * tokens_an_image // _SEEN
    return min(max(1 << codes.bit_length() >> 1, FEWEST), MOST)
