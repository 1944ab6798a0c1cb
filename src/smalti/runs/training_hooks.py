"""What a run does between its steps: save, measure, keep a step that failed, go back after a loss that jumped."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Evaluation
from smalti.core.errors import CheckpointError
from smalti.distributed.collectives import all_gather, from_rank0
from smalti.runs.folder import RunFolder
from smalti.runs.reference_curve import ReferenceComparison
from smalti.training.checkpoint import BackgroundWriter, Checkpoint, read_checkpoint_on_rank0
from smalti.training.loop import RunHooks
from smalti.training.nonfinite import NotFiniteError, write_dump
from smalti.training.trainer import Trainer
from smalti.training.training_plan import Plan

_RUN = ("config.json", "data.json", "bad_files.jsonl")
"""What a bundle has of the run."""


@dataclass(frozen=True)
class TrainingHooks(RunHooks):
    """Those of a run in a folder.

    Attributes:
        look: called before every save that `plan` asks for; it must leave the trainer as it is.
        evaluation: measures `trainer.trained`; its figures have lines of their own in metrics.jsonl.
        beside: the run that the loss is compared with.
    """

    folder: RunFolder
    compute: Compute
    plan: Plan
    writer: BackgroundWriter
    go_on: str
    look: Callable[[Trainer], None] | None = None
    evaluation: Evaluation | None = None
    beside: ReferenceComparison | None = None

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint on the thread beside training."""
        plan = self.plan
        planned = trainer.step == plan.scheduled(trainer.step) or trainer.step == plan.steps
        if self.look is not None and planned:  # and not where a signal asks: an interrupted run looks as often
            self.look(trainer)
        keep = plan.scheduled(trainer.step) if plan.rollback else None
        trainer.save(self.folder.path, partial(self.writer.write, keep=keep))

    def keep_failed(self, trainer: Trainer, batch: Batch, failure: NotFiniteError) -> Path:
        """Keep a step in the run folder, with all that `smalti replay` needs: the images of all ranks."""
        before = trainer.checkpoint()
        batch = replace(batch, index=all_gather(batch.index), key=all_gather(batch.key))
        return Path(from_rank0(lambda: str(self._keep(before, batch, failure))))

    def _keep(self, before: Checkpoint, batch: Batch, failure: NotFiniteError) -> Path:
        path, data = self.folder.path, self.folder.read_data()
        more = [path / name for name in _RUN if (path / name).exists()]
        num_images = data["images"] if data else len(batch.index)
        return write_dump(path, before, batch, failure.numbers, self.compute, num_images, more)

    def roll_back(self, trainer: Trainer) -> str:
        """Go back to the newest checkpoint that was due before this step, whatever signals have asked for since."""
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
        """Figures of the weights, every so many steps and at the end."""
        if self.evaluation is None or (trainer.step % self.evaluation.every and trainer.step < self.plan.steps):
            return {}
        return self.evaluation(trainer.trained)

    def remark(self, step: int, values: Mapping[str, float]) -> str:
        """Where the loss lies beside that of the other run."""
        return "" if self.beside is None else self.beside(step, values)
