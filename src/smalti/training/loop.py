"""The one training loop.

for step in range(done, steps):
    batch = batches(step)
    output = objective(batch, step)
    (output.loss_sum / output.weight).backward()
    stop if the gradient is not finite; clip; optimiser step; codebook and averages follow
    log; now and then: save
"""

from collections.abc import Callable
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
    repeat: bool = setting(False, "let a batch hold an image more than once, where there are fewer than it has rows")
    log_every: int = setting(10, "steps")
    save_every: int = setting(1000, "steps")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "save_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}", "use at least 1")

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
    """All that training changes: weights, buffers, the optimiser's moments, averaged weights and the step counter."""

    def __init__(self, objective: Objective, optimiser: AdamW, steps: int, ema_decay: float | None = None) -> None:
        self.objective = objective
        self.clip_grad = optimiser.clip_grad
        self.optimizer = optimiser.build(objective.model)
        self.lr = optimiser.schedule(steps)
        self.ema = None if ema_decay is None else EMA(objective.model, ema_decay)
        self.step = 0

    def train_step(self, batch: Batch, compute: Compute) -> tuple[StepOutput, Tensor]:
        """One optimiser step. Returns what the objective said, and the norm of the gradient before clipping.

        Raises:
            NumericError: loss or gradient is not finite; no weight has changed.
        """
        with compute.autocast():
            output: StepOutput = self.objective(batch, torch.tensor(self.step))
        (output.loss_sum / output.weight).backward()
        norm = nn.utils.clip_grad_norm_(self.objective.model.parameters(), self.clip_grad)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NumericError(
                f"the gradient is not finite at step {self.step}",
                cause=f"loss {float((output.loss_sum / output.weight).detach()):g}",
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

    @property
    def trained(self) -> nn.Module:
        """The weights to use: the averaged ones where there are any."""
        return self.objective.model if self.ema is None else self.ema.module

    def save(self, run: Path) -> None:
        """Write a checkpoint: `trained` and all that resuming needs beside it."""
        state = {f"raw.{name}": value for name, value in self.objective.model.state_dict().items()}
        state |= {f"own.{name}": value for name, value in self.objective.named_buffers(recurse=False)}
        for name, parameter in self.objective.model.named_parameters():
            for moment in _MOMENTS:
                state[f"{moment}.{name}"] = self.optimizer.state[parameter][moment]
        write_checkpoint(run, self.step, self.trained, state)

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
        for name, parameter in self.objective.model.named_parameters():
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


def means(output: StepOutput) -> dict[str, float]:
    """The loss and every metric of a step as plain numbers."""
    values = {"loss": float((output.loss_sum / output.weight).detach())}
    return values | {name: float(total / count) for name, (total, count) in output.metrics.items()}
