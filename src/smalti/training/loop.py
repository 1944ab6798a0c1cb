"""The one training loop.

for step in range(done, steps):
    for part in batches(step).split(accumulate):
        output = objective(part, step)
        (output.loss_sum / weight of the whole step).backward()
    no gradient for what is frozen yet; stop if loss or gradient is not finite; clip
    optimiser step; codebook and averages follow
    evaluate every so many steps; log; now and then, and when a signal asks for it: save
"""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Batches, StepOutput
from smalti.core.errors import OutputError
from smalti.core.log import Log
from smalti.distributed.signals import noted
from smalti.training.nonfinite import NotFiniteError
from smalti.training.step_timer import StepTimer
from smalti.training.trainer import Trainer, means
from smalti.training.training_plan import Plan


class RunHooks:
    """What a run does between the steps of `fit`: here nothing.

    Attributes:
        go_on: the command that goes on with the run, for whoever has stopped it; empty where nothing is saved.
    """

    go_on: str = ""

    def save(self, trainer: Trainer) -> None:
        """Called every `plan.save_every` steps, at the end, and when a signal asks for it."""

    def keep_failed(self, trainer: Trainer, batch: Batch, failure: NotFiniteError) -> Path | None:
        """Keep the step that stops the run because it is not finite, and say where."""

    def roll_back(self, trainer: Trainer) -> str:
        """Called when the loss jumps, `plan.rollback` times at most; says to which step it has gone back."""
        return ""

    def evaluate(self, trainer: Trainer) -> Mapping[str, float]:
        """Figures of `trainer.trained` after this step, or none; they have lines of their own in metrics.jsonl."""
        return {}

    def remark(self, step: int, values: Mapping[str, float]) -> str:
        """What there is to say about loss and metrics where a step is logged, or nothing."""
        return ""


_NO_HOOKS = RunHooks()


def fit(
    trainer: Trainer,
    batches: Batches,
    plan: Plan,
    log: Log,
    *,
    title: str,
    compute: Compute,
    hooks: RunHooks = _NO_HOOKS,
) -> None:
    """Train until `plan.steps` are done, or a signal asks for an end (`distributed/signals.py`).

    Args:
        batches: the batch of each step, counted from 0.
        title: the name of the stage in progress lines and in metrics.jsonl.

    Raises:
        NotFiniteError: see `Trainer.train_step`; more steps than `plan.skip_nonfinite`.
        StoppedError: by a signal; the last step is whole, and saved.
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
                done = _step_or_skip(trainer, batch, plan, log, compute, hooks)
                spent.after_step(log)
                last = trainer.step == plan.steps
                wanted = asked.agreed()
                if figures := hooks.evaluate(trainer):
                    found = dict(figures)
                    log.record(stage=title, step=trainer.step, **found)
                if done is not None and (trainer.step % plan.log_every == 0 or last):
                    values = _record(trainer, *done, plan, log, title)
                    if warning := trainer.spikes.note(trainer.step, values["loss"]):
                        log.say(warning)
                        if trainer.rollbacks < plan.rollback and (said := hooks.roll_back(trainer)):
                            log.say(said)
                    numbers = [f"{name} {value:.3f}" for name, value in (values | found).items()]
                    remark = hooks.remark(trainer.step, values)
                    bar.update(trainer.step, note="  ".join([*numbers, *filter(None, [remark]), spent.describe()]))
                if trainer.step % plan.save_every == 0 or last or wanted.save:
                    asked.save = False
                    hooks.save(trainer)
                    wanted = asked.agreed()  # what came meanwhile
                    if wanted.stop is not None:
                        break
        if wanted.stop is not None:
            kept = "saved" if hooks.go_on else "not saved"
            fix = hooks.go_on and f"go on with {hooks.go_on}"
            raise wanted.stopped(f"{title} after step {trainer.step}, {kept}", fix=fix)
    trainer.objective.eval()


def _step_or_skip(
    trainer: Trainer, batch: Batch, plan: Plan, log: Log, compute: Compute, hooks: RunHooks
) -> tuple[StepOutput, Tensor] | None:
    """A step; None where it failed and may be left out."""
    try:
        return trainer.train_step(batch, compute)
    except NotFiniteError as failure:
        if trainer.skipped < plan.skip_nonfinite:
            trainer.skip_step()
            log.say(f"skipped: {failure.what}; {failure.cause}; {trainer.skipped} of at most {plan.skip_nonfinite}")
            return None
        try:
            raise NotFiniteError(failure.step, failure.numbers, hooks.keep_failed(trainer, batch, failure)) from None
        except OutputError as error:
            log.say(f"the step cannot be kept: {error}")
            raise failure from None


def _record(trainer: Trainer, output: StepOutput, norm: Tensor, plan: Plan, log: Log, title: str) -> dict[str, float]:
    """A line of metrics.jsonl; what the objective said in it."""
    values = means(output)
    counts = {"skipped": trainer.skipped} if plan.skip_nonfinite else {}
    counts |= {"rollbacks": trainer.rollbacks} if plan.rollback else {}
    lr = trainer.lr(trainer.step)
    log.record(stage=title, step=trainer.step, lr=lr, grad_norm=float(norm), **values, **counts)
    return values
