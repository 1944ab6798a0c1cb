"""The one training loop.

for step in range(done, steps):
    for part in batches(step).split(accumulate):
        output = objective(part, step)
        (output.loss_sum / weight of the whole step).backward()
    none for what is frozen yet; stop if the gradient is not finite; clip; optimiser step; codebook and averages follow
    log; now and then: save
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.core.config import require, setting
from smalti.core.contracts import Batch, Batches, Objective, StepOutput
from smalti.core.errors import DataError, NumericError
from smalti.core.log import Log
from smalti.training.checkpoint import load_weights, read_checkpoint, write_checkpoint
from smalti.training.ema import EMA
from smalti.training.optim import AdamW
from smalti.training.spent import Spent

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of each parameter."""


@dataclass(frozen=True)
class Plan:
    """How long to train, and how often to do what is not training."""

    steps: int = setting(1000, "optimiser steps")
    batch_size: int = setting(256, "images")
    accumulate: int = setting(1, "equal parts of a batch, computed in turn: the same step in less memory")
    repeat: bool = setting(False, "let a batch hold an image more than once, where there are fewer than it has rows")
    log_every: int = setting(10, "steps")
    save_every: int = setting(1000, "steps")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}", "use at least 1")
        require(
            self.batch_size % self.accumulate == 0,
            f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}",
        )

    @property
    def micro_batch_size(self) -> int:
        """Images that are computed at a time."""
        return self.batch_size // self.accumulate

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


@runtime_checkable
class Follower(Protocol):
    """An objective whose model has state that follows the weights, such as a codebook of moving averages."""

    def follow(self, step: int) -> None:
        """Called when `step` steps are done, and never after one that failed."""


class Trainer:
    """All that training changes: weights, buffers, the optimiser's moments, averaged weights and the step counter.

    Args:
        frozen: parameters that stay as they are, and have no moments, for the first `frozen_steps`.

    Raises:
        UsageError: batches are to be computed in parts, and the objective has to see them whole.
    """

    def __init__(
        self,
        objective: Objective,
        optimiser: AdamW,
        plan: Plan,
        ema_decay: float | None = None,
        *,
        frozen: Iterable[nn.Parameter] = (),
        frozen_steps: int = 0,
    ) -> None:
        require(
            plan.accumulate == 1 or not isinstance(objective, Follower),
            f"accumulate is {plan.accumulate}, and the codebook of a tokenizer follows whole batches",
            "use --plan.accumulate 1, and a smaller --plan.batch-size where memory is short",
        )
        scaled = optimiser.at(plan.batch_size)
        self.objective = objective
        self.accumulate = plan.accumulate
        self.clip_grad = scaled.clip_grad
        self.scaling = optimiser.scaling(plan.batch_size)
        self.optimizer = scaled.build(objective.model)
        self.lr = scaled.schedule(plan.steps)
        self.ema = None if ema_decay is None else EMA(objective.model, ema_decay)
        self.frozen, self.frozen_steps = tuple(frozen), frozen_steps
        self.step = 0

    def train_step(self, batch: Batch, compute: Compute) -> tuple[StepOutput, Tensor]:
        """One optimiser step. Returns what the objective said, and the norm of the gradient before clipping.

        Raises:
            NumericError: loss or gradient is not finite; no weight has changed.
        """
        output = self._gradients(batch, compute)
        if self.step < self.frozen_steps:
            for parameter in self.frozen:
                parameter.grad = None  # which AdamW passes over: no decay, and no moments until the first gradient
        norm = nn.utils.clip_grad_norm_(self.objective.model.parameters(), self.clip_grad)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NumericError(
                f"the gradient is not finite at step {self.step}",
                cause=f"loss {float(output.loss_sum / output.weight):g}",
                fix="lower the learning rate or lengthen the warm-up (--optimiser.lr, --optimiser.warmup-ratio)",
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(self.step + 1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if isinstance(self.objective, Follower):
            self.objective.follow(self.step)
        if self.ema is not None:
            self.ema.update(self.objective.model, self.step)
        return output, norm

    def _gradients(self, batch: Batch, compute: Compute) -> StepOutput:
        """Fill `grad` with the gradient of the mean loss of the batch, and return the sums that it is the mean of.

        What a part weighs is known when it has been computed, what all of them weigh only at the end. Until then the
        unit is the weight of the first part, so that gradients are about as large as those of a mean.
        """
        outputs: list[StepOutput] = []
        for part in batch.split(self.accumulate):
            with compute.autocast():
                output: StepOutput = self.objective(part, torch.tensor(self.step))
            unit = outputs[0].weight if outputs else output.weight
            (output.loss_sum / unit).backward()
            outputs.append(output._replace(loss_sum=output.loss_sum.detach()))
        step = summed(outputs)
        if len(outputs) > 1:
            gradients = [p.grad for p in self.objective.model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, outputs[0].weight / step.weight)
        return step

    @property
    def trained(self) -> nn.Module:
        """The weights to use: the averaged ones where there are any."""
        return self.objective.model if self.ema is None else self.ema.module

    def save(self, run: Path, write: Callable[..., object] = write_checkpoint) -> None:
        """Write a checkpoint: `trained` and all that resuming needs beside it."""
        state = {f"raw.{name}": value for name, value in self.objective.model.state_dict().items()}
        state |= {f"own.{name}": value for name, value in self.objective.named_buffers(recurse=False)}
        for name, parameter in self.objective.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})  # none of what is frozen yet
            state |= {f"{moment}.{name}": moments[moment] for moment in _MOMENTS if moments}
        write(run, self.step, self.trained, state)

    def restore(self, run: Path) -> None:
        """Take up the newest whole checkpoint; training goes on as if it had not been interrupted.

        Raises:
            CheckpointError: there is none, or its weights do not fit.
        """
        checkpoint = read_checkpoint(run)
        state: dict[str, dict[str, Tensor]] = {kind: {} for kind in ("raw", "own", *_MOMENTS)}
        for key, value in checkpoint.state.items():
            kind, name = key.split(".", 1)
            state[kind][name] = value
        load_weights(self.objective.model, state["raw"], str(run))
        if self.ema is not None:
            load_weights(self.ema.module, checkpoint.model, str(run))
        for name, value in self.objective.named_buffers(recurse=False):
            value.copy_(state["own"][name])
        learned = [pair for pair in self.objective.model.named_parameters() if pair[0] in state["step"]]
        for name, parameter in learned:
            moments = {moment: state[moment][name].to(parameter.device) for moment in _MOMENTS}
            laid_out = {m: torch.empty_like(parameter).copy_(v) if v.ndim else v for m, v in moments.items()}
            self.optimizer.state[parameter] = laid_out
        self.step = checkpoint.step


def fit(
    trainer: Trainer,
    batches: Batches,
    plan: Plan,
    log: Log,
    *,
    title: str,
    compute: Compute,
    save: Callable[[Trainer], None] | None = None,
) -> None:
    """Train until `plan.steps` are done.

    Args:
        batches: the batch of each step, counted from 0.
        title: the name of the stage in progress lines and in metrics.jsonl.
        save: called every `plan.save_every` steps and at the end.

    Raises:
        NumericError: see `Trainer.train_step`.
    """
    if trainer.scaling:
        log.say(trainer.scaling)
    trainer.objective.train()
    spent = Spent(batches)
    with log.progress(title, plan.steps) as bar, closing(batches):
        while trainer.step < plan.steps:
            batch = spent.on_batch(trainer.step)
            output, norm = trainer.train_step(batch.to(compute.device), compute)
            spent.after_step(log)
            if trainer.step % plan.log_every == 0 or trainer.step == plan.steps:
                values = means(output)
                log.record(stage=title, step=trainer.step, lr=trainer.lr(trainer.step), grad_norm=float(norm), **values)
                numbers = [f"{name} {value:.3f}" for name, value in values.items()]
                bar.update(trainer.step, note="  ".join([*numbers, spent.describe()]))
            if save is not None and (trainer.step % plan.save_every == 0 or trainer.step == plan.steps):
                save(trainer)
    trainer.objective.eval()


def summed(outputs: Sequence[StepOutput]) -> StepOutput:
    """What an objective says about all parts of a batch together."""
    if len(outputs) == 1:
        return outputs[0]
    loss_sum, weight = (torch.stack(values).sum() for values in zip(*(o[:2] for o in outputs), strict=True))
    metrics = {}
    for name in outputs[0].metrics:
        total, count = (torch.stack(values).sum() for values in zip(*(o.metrics[name] for o in outputs), strict=True))
        metrics[name] = (total, count)
    return StepOutput(loss_sum, weight, metrics)


def means(output: StepOutput) -> dict[str, float]:
    """The loss and every metric of a step as plain numbers."""
    values = {"loss": float((output.loss_sum / output.weight).detach())}
    return values | {name: float(total / count) for name, (total, count) in output.metrics.items()}
