"""Which image takes the place of one that cannot be read: the same one in every epoch, on every machine."""

from collections.abc import Iterator

from smalti.core.rng import Stream, fold

_ATTEMPTS = 100


def candidates(position: int, length: int) -> Iterator[int]:
    """The image itself, then a hundred to try in its place, of `length` images, drawn by a hash of `position`."""
    yield position
    for attempt in range(_ATTEMPTS):
        yield int(fold(position, attempt, Stream.REPLACE) % length)
