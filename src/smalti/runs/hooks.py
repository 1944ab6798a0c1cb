"""What a training run does between two steps.

It saves checkpoints, evaluates, makes pictures for a tracker, keeps a step that failed, and goes back after a jump of
the loss.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.core.errors import CheckpointError, is_out_of_memory
from smalti.core.log import Log
from smalti.core.ranks import world_size
from smalti.distributed.collectives import all_gather, from_rank0, full_tensors
from smalti.runs.folder import REBUILDING, RunFolder
from smalti.runs.pretraining_checks import OnlineProbe, ReferenceComparison, token_loss
from smalti.training.checkpoint import BackgroundWriter, Checkpoint, read_checkpoint_on_rank0
from smalti.training.loop import RunHooks
from smalti.training.nonfinite import NotFiniteError, write_captured
from smalti.training.tracking import Picture, Tracking
from smalti.training.trainer import Trainer
from smalti.training.training_plan import Plan

Pictures: TypeAlias = Callable[[Mapping[str, Tensor]], Mapping[str, Picture]]
"""Makes pictures, by name, with the weights of the network at a step."""


@dataclass(frozen=True)
class Baselines:
    """What the loss of a step is compared with.

    Attributes:
        unigram_entropy: what a guess costs that never looks, in nats a masked token; None for other losses.
    """

    unigram_entropy: float | None = None
    reference: ReferenceComparison | None = None

    def saved(self, values: Mapping[str, float]) -> str:
        """The bits a masked token that the loss lies below the unigram entropy, as `bits 1.23`."""
        if self.unigram_entropy is None:
            return ""
        return f"bits {(self.unigram_entropy - token_loss(values)) / math.log(2):.2f}"


NO_BASELINES = Baselines()


@dataclass(frozen=True)
class TrainingHooks(RunHooks):
    """The hooks of a run that has a run folder.

    Attributes:
        look: called before every save that `plan` asks for; it must not change the trainer.
        evaluation: measures `trainer.eval_model`; its figures are written to separate lines of metrics.jsonl.
        tracking: the tracker; None where there is none, and on all ranks but the first.
        pictures: makes the pictures that are logged, every `log_pictures` steps; None: there are none.
    """

    folder: RunFolder
    compute: Compute
    plan: Plan
    writer: BackgroundWriter
    go_on: str
    look: Callable[[Trainer], None] | None = None
    evaluation: OnlineProbe | None = None
    baselines: Baselines = NO_BASELINES
    tracking: Tracking | None = None
    pictures: Pictures | None = None
    log_pictures: int = 0

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint in a background thread."""
        plan = self.plan
        planned = trainer.step == plan.scheduled(trainer.step) or trainer.step == plan.steps
        if self.look is not None and planned:  # not on a signal: an interrupted run calls it as often
            self.look(trainer)
        keep = plan.scheduled(trainer.step) if plan.rollback else None
        trainer.save(self.folder.path, partial(self.writer.write, keep=keep))

    def keep_failed(self, trainer: Trainer, batch: Batch, failure: NotFiniteError) -> Path:
        """Save a failed step in the run folder with all that `smalti replay` needs: the images of all ranks."""
        before = trainer.checkpoint()
        batch = replace(batch, index=all_gather(batch.index), key=all_gather(batch.key))
        return Path(from_rank0(lambda: str(self._save_failed_step(before, batch, failure))))

    def _save_failed_step(self, before: Checkpoint, batch: Batch, failure: NotFiniteError) -> Path:
        path = self.folder.path
        more = [path / name for name in REBUILDING if (path / name).exists()]
        return write_captured(path, before, batch, failure.numbers, self.compute, more)

    def roll_back(self, trainer: Trainer) -> str:
        """Go back to the newest checkpoint that was due before this step; saves requested by signals do not count."""
        self.writer.wait()
        try:
            checkpoint = read_checkpoint_on_rank0(self.folder.path, until=self.plan.scheduled(trainer.step - 1))
        except CheckpointError as error:
            return f"no checkpoint to go back to: {error.cause}"
        trainer.roll_back(checkpoint, str(self.folder.path))
        return (
            f"rolled back to step {checkpoint.step}: the images since are left out, step {trainer.step + 1} is next;"
            f" {trainer.rollbacks} of at most {self.plan.rollback} times"
        )

    def evaluate(self, trainer: Trainer) -> Mapping[str, float]:
        """Evaluate the weights, at a fixed interval of steps and at the end."""
        if self.evaluation is None or (trainer.step % self.evaluation.every and trainer.step < self.plan.steps):
            return {}
        try:
            return self.evaluation(trainer.eval_model)
        except Exception as error:
            if world_size() > 1 or not is_out_of_memory(error):
                raise
            Log().say(f"warning: the evaluation after step {trainer.step} is left out: out of memory")
            return {}

    def show(self, trainer: Trainer) -> None:
        """Make the pictures that are due, and send what there is of the step to the tracker."""
        step, tracking = trainer.step, self.tracking
        if self.pictures is not None and (step % self.log_pictures == 0 or step == self.plan.steps):
            weights = full_tensors(trainer.eval_model.state_dict())  # of all ranks, where they are sharded
            if tracking is not None:
                try:
                    tracking.show(self.pictures(weights))
                except Exception as error:
                    tracking.failed(error)
        if tracking is not None:
            tracking.end_step(step)

    def remarks(self, step: int, values: Mapping[str, float]) -> tuple[str, str]:
        """The bits saved, and how the loss compares with that of the reference run."""
        beside = "" if self.baselines.reference is None else self.baselines.reference(step, values)
        return self.baselines.saved(values), beside
