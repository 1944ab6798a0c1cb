"""Changes of the program for a run that is forked: faults at known steps, and guarantees taken away."""

from collections.abc import Callable
from typing import Any

from smalti.training.loop import Trainer

SPIKES = (24, 31, 35)
"""Steps whose loss jumps."""


def spikes() -> None:
    """Some steps compute a hundred times their loss, as a bad batch may make it."""
    whole = Trainer._gradients

    def gradients(trainer: Trainer, *arguments: Any) -> Any:
        output = whole(trainer, *arguments)
        return output._replace(loss_sum=output.loss_sum * (100 if trainer.step + 1 in SPIKES else 1))

    Trainer._gradients = gradients  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[], None]] = {"spikes": spikes}
