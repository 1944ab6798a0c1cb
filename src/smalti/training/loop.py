"""The training loop of all stages.

for step in range(done, steps):
    for part in batches(step).split(accumulate):
        output = objective(part, step)
        (output.loss_sum / weight of the whole step).backward()
    no gradient for frozen parameters; stop if loss or gradient is not finite; clip
    optimiser step; update codebook and EMA
    evaluate, log and save where these are due; save also when a signal requests it
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Batches, Evaluation, StepOutput
from smalti.core.errors import OutputError
from smalti.core.log import Log
from smalti.distributed.signals import noted
from smalti.training.nonfinite import NotFiniteError
from smalti.training.step_timer import StepTimer
from smalti.training.trainer import Trainer, means
from smalti.training.training_plan import Plan

Capture: TypeAlias = Callable[[Trainer, Batch, NotFiniteError], Path]
"""Writes a failed step to a folder, and returns the folder."""

GoBack: TypeAlias = Callable[[Trainer], str]
"""Rolls a trainer back after a loss spike, and returns a message that says to where."""

Remark: TypeAlias = Callable[[int, Mapping[str, float]], str]
"""Returns a remark about the loss and metrics of a step for the progress line, or an empty text."""


def fit(
    trainer: Trainer,
    batches: Batches,
    plan: Plan,
    log: Log,
    *,
    title: str,
    compute: Compute,
    save: Callable[[Trainer], None] | None = None,
    capture: Capture | None = None,
    go_back: GoBack | None = None,
    evaluation: Evaluation | None = None,
    remark: Remark | None = None,
    go_on: str = "",
) -> None:
    """Train until `plan.steps` steps are done, or a signal requests the end (`distributed/signals.py`).

    Args:
        trainer: the state of training, which is changed.
        batches: the batch of each step, counted from 0.
        plan: number of steps, and how often to log, evaluate and save.
        log: console and metrics.jsonl.
        title: the name of the stage in progress lines and in metrics.jsonl.
        compute: device and number format.
        save: called every `plan.save_every` steps, at the end, and when a signal requests it.
        capture: writes down the non-finite step that stops the run.
        go_back: called after a loss spike, at most `plan.rollback` times.
        evaluation: measures `trainer.trained`; its metrics are separate lines of metrics.jsonl.
        remark: adds to the progress line of logged steps.
        go_on: the command that resumes the run, for the message after a stop.

    Raises:
        NotFiniteError: see `Trainer.train_step`; after more than `plan.skip_nonfinite` such steps.
        StoppedError: a signal ended the run; the last step is complete and saved.
    """
    if trainer.scaling:
        log.say(trainer.scaling)
    trainer.objective.train()
    spent = StepTimer(batches)
    found: dict[str, float] = {}
    with noted() as asked:
        wanted = asked.agreed()
        with log.progress(title, plan.steps) as bar, closing(batches):
            while trainer.step < plan.steps:
                batch = spent.on_batch(trainer.step).to(compute.device)
                done = _step_or_skip(trainer, batch, plan, log, compute, capture)
                spent.after_step(log)
                last = trainer.step == plan.steps
                wanted = asked.agreed()
                if evaluation is not None and (trainer.step % evaluation.every == 0 or last):
                    found = dict(evaluation(trainer.trained))
                    log.record(stage=title, step=trainer.step, **found)
                if done is not None and (trainer.step % plan.log_every == 0 or last):
                    values = _record(trainer, *done, plan, log, title)
                    if warning := trainer.spikes.note(trainer.step, values["loss"]):
                        log.say(warning)
                        if go_back is not None and trainer.rollbacks < plan.rollback:
                            log.say(go_back(trainer))
                    numbers = [f"{name} {value:.3f}" for name, value in (values | found).items()]
                    said = "" if remark is None else remark(trainer.step, values)
                    bar.update(trainer.step, note="  ".join([*numbers, *filter(None, [said]), spent.describe()]))
                if trainer.step % plan.save_every == 0 or last or wanted.save:
                    asked.save = False
                    if save is not None:
                        save(trainer)
                    wanted = asked.agreed()  # signals may have arrived meanwhile
                    if wanted.stop is not None:
                        break
        if wanted.stop is not None:
            kept = "not saved" if save is None else "saved"
            raise wanted.stopped(f"{title} after step {trainer.step}, {kept}", fix=go_on and f"go on with {go_on}")
    trainer.objective.eval()


def _step_or_skip(
    trainer: Trainer, batch: Batch, plan: Plan, log: Log, compute: Compute, capture: Capture | None
) -> tuple[StepOutput, Tensor] | None:
    """One step; None where it was non-finite and is skipped."""
    try:
        return trainer.train_step(batch, compute)
    except NotFiniteError as failure:
        if trainer.skipped < plan.skip_nonfinite:
            trainer.skip_step()
            log.say(f"skipped: {failure.what}; {failure.cause}; {trainer.skipped} of at most {plan.skip_nonfinite}")
            return None
        if capture is None:
            raise
        try:
            raise NotFiniteError(failure.step, failure.numbers, capture(trainer, batch, failure)) from None
        except OutputError as error:
            log.say(f"the step cannot be kept: {error}")
            raise failure from None


def _record(trainer: Trainer, output: StepOutput, norm: Tensor, plan: Plan, log: Log, title: str) -> dict[str, float]:
    """Write a line of metrics.jsonl; returns loss and metrics of the step."""
    values = means(output)
    counts = {"skipped": trainer.skipped} if plan.skip_nonfinite else {}
    counts |= {"rollbacks": trainer.rollbacks} if plan.rollback else {}
    lr = trainer.lr(trainer.step)
    log.record(stage=title, step=trainer.step, lr=lr, grad_norm=float(norm), **values, **counts)
    return values
