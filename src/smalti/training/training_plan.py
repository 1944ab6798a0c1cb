"""How long a run trains, and how often it does what is not training."""

from dataclasses import dataclass, replace

from smalti.core.config import require, setting
from smalti.core.errors import DataError


@dataclass(frozen=True)
class Plan:
    """How long to train, and how often to do what is not training."""

    steps: int = setting(1000, "optimiser steps", resume="free")
    batch_size: int = setting(256, "images")
    accumulate: int = setting(1, "equal parts of a batch, computed in turn: the same step in less memory")
    repeat: bool = setting(False, "let a batch hold an image more than once, where there are fewer than it has rows")
    log_every: int = setting(10, "steps", resume="free_without_rollback")
    save_every: int = setting(1000, "steps", resume="free_without_rollback")
    skip_nonfinite: int = setting(
        0, "steps without a finite loss and gradient that a run may leave out; then it stops", resume="free"
    )
    rollback: int = setting(
        0, "times that a run goes back to its last checkpoint when the loss jumps, and leaves out the images since"
    )

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}", "use at least 1")
        require(self.skip_nonfinite >= 0, f"skip_nonfinite is {self.skip_nonfinite}", "use 0 or more steps")
        require(self.rollback >= 0, f"rollback is {self.rollback}", "use 0 or more times")
        require(
            self.batch_size % self.accumulate == 0,
            f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}",
        )

    @property
    def micro_batch_size(self) -> int:
        """Images that are computed at a time."""
        return self.batch_size // self.accumulate

    def of_one_of(self, processes: int) -> "Plan":
        """The plan of one process by itself, with as many images at a time as each of so many has."""
        return replace(self, batch_size=self.batch_size // processes)

    def scheduled(self, step: int) -> int:
        """The last step up to this one at which a checkpoint is due. What signals ask for comes between them."""
        return step - step % self.save_every

    def at_most(self, count: int) -> "Plan":
        """The plan with no more images in a batch than there are."""
        return replace(self, batch_size=min(self.batch_size, count))

    def require_images(self, count: int) -> None:
        """Refuse a batch that is larger than the data set, unless that is meant.

        Raises:
            DataError: it is.
        """
        if count < self.batch_size and not self.repeat:
            fix = f"use --plan.batch-size {count} or less, or --plan.repeat"
            raise DataError(f"{count} images to learn from, and a batch has {self.batch_size}", fix=fix)
