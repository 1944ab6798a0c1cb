"""The number of training steps, the batch size, and the intervals of logging, evaluation and checkpoints."""

from dataclasses import dataclass, replace

from smalti.core.config import require, setting
from smalti.core.errors import DataError

_MAX_STEPS = 10**8 - 1
"""Steps of a run: the number in the name of a checkpoint has 8 digits."""


@dataclass(frozen=True)
class Plan:
    """Number of steps, batch size, and intervals of logging, evaluation and checkpoints."""

    steps: int = setting(1000, "optimiser steps", resume="free")
    batch_size: int = setting(256, "images in a step")
    accumulate: int = setting(1, "equal parts of a batch, computed in turn: the same step in less memory")
    repeat: bool = setting(False, "let a batch hold an image more than once, where there are fewer than it has rows")
    log_every: int = setting(10, "steps between two lines of the log", resume="free_without_rollback")
    save_every: int = setting(1000, "steps between two checkpoints", resume="free_without_rollback")
    skip_nonfinite: int = setting(
        0, "steps without a finite loss and gradient that a run may leave out; then it stops", resume="free"
    )
    rollback: int = setting(
        0, "times that a run goes back to its last checkpoint when the loss jumps, and leaves out the images since"
    )

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}", "use at least 1")
        for name in ("steps", "batch_size"):
            require(getattr(self, name) <= _MAX_STEPS, f"{name} is {getattr(self, name)}", f"use at most {_MAX_STEPS}")
        require(self.skip_nonfinite >= 0, f"skip_nonfinite is {self.skip_nonfinite}", "use 0 or more steps")
        require(self.rollback >= 0, f"rollback is {self.rollback}", "use 0 or more times")
        require(
            self.batch_size % self.accumulate == 0,
            f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}",
        )

    @property
    def micro_batch_size(self) -> int:
        """Images per micro-batch."""
        return self.batch_size // self.accumulate

    def logs(self, step: int) -> bool:
        """Whether the loss and metrics of this step are logged; steps are counted from 1."""
        return step % self.log_every == 0 or step == self.steps

    def scheduled(self, step: int) -> int:
        """The last step, up to this one, at which a periodic checkpoint is due; signals may request others."""
        return step - step % self.save_every

    def at_most(self, count: int) -> "Plan":
        """The plan with the batch size limited to the number of images."""
        return replace(self, batch_size=min(self.batch_size, count))

    def require_images(self, count: int) -> None:
        """Check that the dataset has at least one batch of images, unless repetition is allowed.

        Raises:
            DataError: it has fewer.
        """
        if count < self.batch_size and not self.repeat:
            fix = f"use --plan.batch-size {count} or less, or --plan.repeat"
            raise DataError(f"{count} images to learn from, and a batch has {self.batch_size}", fix=fix)
