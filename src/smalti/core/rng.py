"""Counter-based randomness without state: every draw is a hash of (seed, epoch, index, stream).

So the draws of a sample do not depend on batch size, number of workers, or whether the run was resumed. The hash is the
finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.uint64]
"""One 64-bit key per sample, from which further draws are made."""


class Stream(IntEnum):
    """What a draw is used for. Different streams of one sample are independent."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    MASK = 4
    NOISE = 5
    SPLIT = 6
    JITTER = 7
    REPLACE = 8
    LABELS = 9
    MIX = 10
    AUGMENT = 11
    ERASE = 12


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BITS = (1 << 64) - 1


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, in place: a permutation of the 64-bit integers; every bit depends on every other."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def fold(*counters: int | np.integer | NDArray[np.integer]) -> Keys:
    """Hash counters (integers or integer arrays, broadcast together) to 64-bit keys.

    Each counter enters through a permutation of the 64-bit integers, so keys that differ in one counter only are
    different.

    Example:
        >>> one = fold(0, 3, Stream.MASK)
        >>> many = fold(0, np.arange(10), Stream.MASK)
        >>> bool(one == many[3])
        True
    """
    key: Keys = np.zeros((), np.uint64)
    for counter in counters:
        mixed = np.asarray(key ^ np.asarray(counter).astype(np.uint64))  # a new array, also of one key
        mixed += _GOLDEN
        key = _mix(mixed)
    return key


def fold_one(*counters: int) -> int:
    """`fold` of plain integers, without an array: for a single key it takes a hundredth of the time."""
    key = 0
    for counter in counters:
        key = ((key ^ (counter & _BITS)) + 0x9E3779B97F4A7C15) & _BITS
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _BITS
        key ^= key >> 31
    return key


def uniform_one(key: int, counter: int) -> float:
    """Element `counter` of `uniform` for one key, in [0, 1)."""
    return float(fold_one(key, counter) >> 11) * 2.0**-53


def uniform(keys: Keys, num: int) -> NDArray[np.float64]:
    """`num` uniform draws in [0, 1) from each key, multiples of 2^-53: shape `keys.shape + (num,)`."""
    bits = fold(keys[..., None], np.arange(num)) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def quarters(keys: Keys) -> NDArray[np.float64]:
    """Four independent uniform draws in [0, 1) from each key, multiples of 2^-16: shape `(4,) + keys.shape`.

    They are the bits of the key itself, which is cheap; so the key must come from `fold` and have no other use.
    """
    shifts = np.array([48, 32, 16, 0], np.uint64).reshape(4, *[1] * np.ndim(keys))
    return ((keys >> shifts) & np.uint64(0xFFFF)).astype(np.float64) * 2.0**-16


def permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """A random permutation of `length` samples, different in each epoch."""
    return np.argsort(fold(seed, epoch, np.arange(length), Stream.ORDER), kind="stable")


def signed(keys: Keys) -> NDArray[np.int64]:
    """The same bits as int64, the widest integer type with which torch computes."""
    return keys.view(np.int64)
