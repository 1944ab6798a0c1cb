"""Detection of loss spikes, which often precede divergence."""

from collections import deque
from collections.abc import Sequence
from statistics import median

_WINDOW = 100
_ENOUGH = 20
"""Number of losses before the first one can count as a spike."""
_DEVIATIONS = 10
_SHARE = 0.1


class Spikes:
    """Keeps the last 100 logged losses, and warns when a loss is far above them.

    Far means above their median by ten times their median absolute deviation (about seven standard deviations of normal
    noise), and by a tenth of the median. With roll-backs the losses are part of a checkpoint; otherwise a resumed run
    starts to collect again.
    """

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self._losses: deque[float] = deque(losses, maxlen=_WINDOW)

    @property
    def losses(self) -> list[float]:
        """The losses that are kept, oldest first."""
        return list(self._losses)

    def note(self, step: int, loss: float) -> str:
        """A warning about the loss of a step; empty where it is no spike."""
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
