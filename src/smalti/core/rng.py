"""Randomness without state: every draw is a hash of the counters that name it.

A value depends on (seed, epoch, index, stream) alone, so one sample or a million, one worker or eight, a fresh run or a
resumed one all draw the same numbers. The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.uint64]
"""One 64-bit key a sample; pass it on to draw from it."""


class Stream(IntEnum):
    """What a draw is for. Two streams of one sample are independent."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    MASK = 4
    NOISE = 5
    SPLIT = 6


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: Keys) -> Keys:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def fold(*counters: int | NDArray[np.integer]) -> Keys:
    """Hash counters (integers or integer arrays, broadcast together) to 64-bit keys.

    Example:
        >>> one = fold(0, 3, Stream.MASK)
        >>> many = fold(0, np.arange(10), Stream.MASK)
        >>> bool(one == many[3])
        True
    """
    key: Keys = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for counter in counters:
            key = _mix((key ^ np.asarray(counter).astype(np.uint64)) + _GOLDEN)
    return key


def uniform(keys: Keys, num: int) -> NDArray[np.float64]:
    """`num` uniform draws in [0, 1) from each key: shape `keys.shape + (num,)`."""
    bits = fold(keys[..., None], np.arange(num)) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """The order of `length` samples in one epoch."""
    return np.argsort(fold(seed, epoch, np.arange(length), Stream.ORDER), kind="stable")


def signed(keys: Keys) -> NDArray[np.int64]:
    """The same bits as int64, the widest integer a torch tensor computes with."""
    return keys.view(np.int64)
