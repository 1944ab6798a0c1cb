"""The training loop of all stages.

for step in range(done, steps):
    for part in batches(step).split(accumulate):
        output = objective(part, step)
        (output.loss_sum / weight of the whole step).backward()
    no gradient for frozen parameters; stop if loss or gradient is not finite; clip
    optimiser step; update codebook and EMA
    evaluate, log and save where these are due; save also when a signal requests it
"""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Batches, StepOutput
from smalti.core.errors import OutputError
from smalti.core.log import Log
from smalti.distributed.signals import recorded_signals
from smalti.training.nonfinite import NotFiniteError
from smalti.training.profiling import StepTimer
from smalti.training.trainer import Trainer, mean_metrics
from smalti.training.training_plan import Plan


class RunHooks:
    """What a run does between the steps of `fit`; these do nothing.

    Attributes:
        go_on: the command that resumes the run, for the message after a stop; empty where nothing is saved.
    """

    go_on: str = ""

    def save(self, trainer: Trainer) -> None:
        """Called every `plan.save_every` steps, at the end, and when a signal requests it."""

    def keep_failed(self, trainer: Trainer, batch: Batch, failure: NotFiniteError) -> Path | None:
        """Write the non-finite step that stops the run to a folder, and return the folder."""

    def roll_back(self, trainer: Trainer) -> str:
        """Called after a loss spike, at most `plan.rollback` times; returns a message that says to which step."""
        return ""

    def evaluate(self, trainer: Trainer) -> Mapping[str, float]:
        """Metrics of `trainer.eval_model` after this step, or none; they are separate lines of metrics.jsonl."""
        return {}

    def show(self, trainer: Trainer) -> None:
        """Called after every step, when its metrics are recorded; it must not change the trainer."""

    def remarks(self, step: int, values: Mapping[str, float]) -> tuple[str, str]:
        """What a logged step has saved, as `bits 1.23`, and what its loss is beside: two texts, empty where unknown."""
        return "", ""


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
    """Train until `plan.steps` steps are done, or a signal requests the end (`distributed/signals.py`).

    Args:
        trainer: the state of training, which is changed.
        title: the name of the stage in progress lines and in metrics.jsonl.

    Raises:
        NotFiniteError: see `Trainer.train_step`; after more than `plan.skip_nonfinite` such steps.
        StoppedError: a signal ended the run; the last step is complete and saved.
    """
    if trainer.scaling:
        log.say(trainer.scaling)
    trainer.objective.train()
    timer = StepTimer(batches, compute.device)
    eval_metrics: dict[str, float] = {}
    with recorded_signals() as requests:
        pending = requests.all_reduce()
        with log.progress(title, plan.steps, trainer.step) as bar, closing(batches):
            while trainer.step < plan.steps:
                batch = timer.on_batch(trainer.step).to(compute.device)
                result = _step_or_skip(trainer, batch, plan, log, compute, hooks)
                timer.after_step(log)
                last = trainer.step == plan.steps
                pending = requests.all_reduce()
                if figures := hooks.evaluate(trainer):
                    eval_metrics = dict(figures)
                    log.record(stage=title, step=trainer.step, **eval_metrics)
                if result is not None and plan.logs(trainer.step):
                    values = _record(trainer, *result, plan, log, title)
                    if warning := trainer.spikes.check(trainer.step, values["loss"]):
                        log.say(warning)
                        if trainer.rollbacks < plan.rollback and (message := hooks.roll_back(trainer)):
                            log.say(message)
                    remarks = hooks.remarks(trainer.step, values)
                    bar.update(trainer.step, _progress_line(values | eval_metrics, remarks, timer, plan.batch_size))
                hooks.show(trainer)
                if trainer.step % plan.save_every == 0 or last or pending.save:
                    requests.save = False
                    hooks.save(trainer)
                    pending = requests.all_reduce()  # signals may have arrived meanwhile
                    if pending.stop is not None:
                        break
        if pending.stop is not None:
            kept = "saved" if hooks.go_on else "not saved"
            fix = hooks.go_on and f"go on with {hooks.go_on}"
            raise pending.as_error(f"{title} after step {trainer.step}, {kept}", fix=fix)
    trainer.objective.eval()


def _step_or_skip(
    trainer: Trainer, batch: Batch, plan: Plan, log: Log, compute: Compute, hooks: RunHooks
) -> tuple[StepOutput, Tensor] | None:
    """One step; None where it was non-finite and is skipped."""
    try:
        return trainer.train_step(batch, compute, plan.logs(trainer.step + 1))
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


def _progress_line(values: Mapping[str, float], remarks: tuple[str, str], timer: StepTimer, batch_size: int) -> str:
    """The numbers of the progress line, the most telling first: a narrow terminal shows the first ones."""
    shown = {name: f"{name} {value:.3f}" for name, value in values.items()}
    saved, beside = remarks
    wait, bound = timer.describe()
    codes = f"codes {values['codes']:.0%}" if shown.pop("codes", "") else ""
    first = [shown.pop("loss"), saved, codes, timer.speed(batch_size), wait]
    return "  ".join(filter(None, [*first, *shown.values(), beside, bound]))


def _record(trainer: Trainer, output: StepOutput, norm: Tensor, plan: Plan, log: Log, title: str) -> dict[str, float]:
    """Write a line of metrics.jsonl; returns loss and metrics of the step."""
    values = mean_metrics(output)
    counts = {"skipped": trainer.skipped} if plan.skip_nonfinite else {}
    counts |= {"rollbacks": trainer.rollbacks} if plan.rollback else {}
    lr = trainer.lr(trainer.step)
    log.record(stage=title, step=trainer.step, lr=lr, grad_norm=float(norm), **values, **counts)
    return values
