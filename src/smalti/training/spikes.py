"""A loss that jumps is worth a line: often the last sign before a run goes wrong."""

from collections import deque
from collections.abc import Sequence
from statistics import median

_WINDOW = 100
_ENOUGH = 20
"""Losses to know before any is called unusual."""
_DEVIATIONS = 10
_SHARE = 0.1


class Spikes:
    """Remembers the last 100 logged losses, and says when one lies far above them.

    Far is above their median by ten times their median absolute deviation (about seven standard deviations of normal
    noise), and by a tenth of the median. A run that only warns begins to collect anew when it goes on; to one that
    rolls back they are state.
    """

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self._losses: deque[float] = deque(losses, maxlen=_WINDOW)

    @property
    def losses(self) -> list[float]:
        """What is remembered, oldest first."""
        return list(self._losses)

    def note(self, step: int, loss: float) -> str:
        """A line about the loss of a step; empty where there is nothing to say."""
        before = list(self._losses)
        self._losses.append(loss)
        if len(before) < _ENOUGH:
            return ""
        usual = median(before)
        deviation = median(abs(one - usual) for one in before)
        if loss <= usual + max(_DEVIATIONS * deviation, _SHARE * abs(usual)):
            return ""
        return (
            f"warning: the loss jumps to {loss:.4g} at step {step}; the median of the last {len(before)} logged is"
            f" {usual:.4g}; should it not come back, lower --optimiser.lr"
        )
