"""The codebook as an HTML fragment: a card for each visual token. Nothing is loaded from anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from smalti.report.pictures import Picture, data_uri
from smalti.report.templates import template

_MOST_DEAD = 200
"""Numbers of codes that do not occur, listed at most."""


@dataclass(frozen=True)
class Card:
    """A visual token: what it paints, the share of the positions it takes, and patches that are typical of it."""

    number: int
    share: float
    prototype: Picture
    examples: UInt8[np.ndarray, "_n _H _W _C"]


def atlas(cards: Sequence[Card], counts: Int[np.ndarray, "V"] | Sequence[int], *, size: int = 32) -> str:
    """Cards in the given order, the frequency of each as its tooltip; below them the codes that do not occur.

    Args:
        cards: of some or all codes.
        counts: how often each of the V codes occurs.
        size: side of a prototype on the screen in CSS pixels; examples are a little smaller.

    Raises:
        ValueError: a card of a code that has no count.
    """
    numbers = np.asarray(counts)
    if any(not 0 <= card.number < len(numbers) for card in cards):
        raise ValueError(f"a card of a code that is not among the {len(numbers)} codes")
    examples = max((len(card.examples) for card in cards), default=0)
    columns = f"{size}px repeat({examples}, {round(0.8 * size)}px)" if examples else f"{size}px"
    shown = f" The {len(cards)} most frequent are shown." if len(cards) < np.count_nonzero(numbers) else ""
    return template("atlas.html").render(
        cards=[(c.number, c.share, data_uri(c.prototype), list(map(data_uri, c.examples))) for c in cards],
        columns=columns,
        caption=f"{_use(numbers)}{shown}{_dead(numbers)}",
    )


def _use(counts: Int[np.ndarray, "V"]) -> str:
    top = 100 * counts.max(initial=0) / max(counts.sum(), 1)
    used = f"{np.count_nonzero(counts)} of {len(counts)} visual tokens occur"
    return f"{used}; the most frequent takes {top:.2g} % of the positions."


def _dead(counts: Int[np.ndarray, "V"]) -> str:
    dead = np.flatnonzero(counts == 0)
    if not len(dead):
        return ""
    more = f" and {len(dead) - _MOST_DEAD} more" if len(dead) > _MOST_DEAD else ""
    return f" These do not: {', '.join(map(str, dead[:_MOST_DEAD]))}{more}."
