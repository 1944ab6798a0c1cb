"""One step of training, and all that steps change."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.core.config import require
from smalti.core.contracts import Batch, Objective, StepOutput
from smalti.core.ranks import is_rank0, world_size
from smalti.distributed.collectives import (
    all_reduce_mean,
    all_reduce_sum,
    copy_into,
    full_tensor,
    full_tensors,
    local_shard,
)
from smalti.training.checkpoint import Checkpoint, Weights, load_weights, read_checkpoint_on_rank0, write_checkpoint
from smalti.training.ema import EMA
from smalti.training.nonfinite import NotFiniteError, Numbers
from smalti.training.optim import AdamW
from smalti.training.parallel import Parallel, shard, strategy_for
from smalti.training.spikes import Spikes
from smalti.training.training_plan import Plan

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of each parameter."""
_SKIPPED, _ROLLBACKS, _LOSSES = "count.skipped", "count.rollbacks", "count.losses"


@runtime_checkable
class Follower(Protocol):
    """An objective whose model has state that follows the weights, such as a codebook of moving averages."""

    def follow(self, step: int) -> None:
        """Called when `step` steps are done, and never after one that failed."""


class Trainer:
    """All that training changes: weights, buffers, the optimiser's moments, averaged weights and the step counter.

    Args:
        frozen: parameters that stay as they are, and have no moments, for the first `frozen_steps`.
        parallel: how several processes share the work.

    Raises:
        UsageError: batches are to be computed in parts, and the objective has to see them whole; or ranks and parts do
            not divide them.
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
        parallel: Parallel = "ddp",
    ) -> None:
        require(
            plan.accumulate == 1 or not isinstance(objective, Follower),
            f"accumulate is {plan.accumulate}, and the codebook of a tokenizer follows whole batches",
            "use --plan.accumulate 1, and a smaller --plan.batch-size where memory is short",
        )
        require(
            plan.batch_size % (plan.accumulate * world_size()) == 0,
            f"a batch of {plan.batch_size} images does not divide into {world_size()} x {plan.accumulate} equal parts",
            "use a multiple of processes times --plan.accumulate",
        )
        scaled = optimiser.at(plan.batch_size)
        self.objective = objective
        self.ema = None if ema_decay is None else EMA(objective.model, ema_decay)
        if parallel == "fsdp" and world_size() > 1:
            shard(objective.model)
            if self.ema is not None:
                shard(self.ema.module)
        self.spread = strategy_for(objective, parallel)
        self.accumulate = plan.accumulate
        self.clip_grad = scaled.clip_grad
        self.scaling = optimiser.scaling(plan.batch_size)
        self.optimizer = scaled.build(objective.model)
        self.lr = scaled.schedule(plan.steps)
        self.frozen, self.frozen_steps = tuple(frozen), frozen_steps  # an iterator: sharded parameters are others
        self.step = 0
        self.skipped = 0
        self.rolls_back, self.rollbacks, self.spikes = plan.rollback > 0, 0, Spikes()

    def train_step(self, batch: Batch, compute: Compute) -> tuple[StepOutput, Tensor]:
        """One optimiser step. Returns what the objective said, and the norm of the gradient before clipping.

        Raises:
            NotFiniteError: loss or gradient is not; no weight has changed.
        """
        output, norm = self.gradients(batch, compute)
        model = self.objective.model
        if not torch.isfinite(norm + output.loss_sum):
            numbers = Numbers.of(model, output.loss_sum / output.weight, norm)
            self.optimizer.zero_grad(set_to_none=True)
            raise NotFiniteError(self.step, numbers)
        nn.utils.clip_grads_with_norm_(model.parameters(), self.clip_grad, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(self.step + 1) * group["lr_scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if isinstance(self.objective, Follower):
            self.objective.follow(self.step)
        if self.ema is not None:
            self.ema.update(self.objective.model, self.step)
        return output, norm

    def skip_step(self) -> None:
        """Leave out a step that failed: it is counted, its images are not seen again, and all else stays as it is."""
        self.step += 1
        self.skipped += 1

    def roll_back(self, checkpoint: Checkpoint, where: str) -> None:
        """Become what a checkpoint holds, and stay at this step: what was learned since, and its images, are left out.

        Steps that were skipped since then stay counted.
        """
        step, skipped, rollbacks = self.step, self.skipped, self.rollbacks
        self.load_state(checkpoint, where)
        self.step, self.skipped, self.rollbacks = step, skipped, rollbacks + 1

    def gradients(self, batch: Batch, compute: Compute) -> tuple[StepOutput, Tensor]:
        """Fill `grad`. Returns what the objective said, and the norm of the gradient."""
        output = self._gradients(batch, compute)
        if self.step < self.frozen_steps:
            for parameter in self.frozen:
                parameter.grad = None  # which AdamW passes over: no decay, and no moments until the first gradient
        gradients = [p.grad for p in self.objective.model.parameters() if p.grad is not None]
        return output, full_tensor(nn.utils.get_total_norm(gradients))

    def _gradients(self, batch: Batch, compute: Compute) -> StepOutput:
        """Fill `grad` with the gradient of the mean loss of the batch, and return the sums that it is the mean of.

        What a part weighs is known when it has been computed, what all of them weigh only at the end. Until then the
        unit is the weight of the first part, so that gradients are about as large as those of a mean. Of several ranks
        it is the mean over their first parts, and gradients are means over ranks.
        """
        outputs: list[StepOutput] = []
        unit: Tensor | None = None
        for part in batch.split(self.accumulate):
            last = len(outputs) == self.accumulate - 1
            with compute.autocast():
                output = self.spread(part, torch.tensor(self.step), last=last)
            unit = all_reduce_mean(output.weight) if unit is None else unit
            (output.loss_sum / unit).backward()
            outputs.append(output._replace(loss_sum=output.loss_sum.detach()))
        step = everywhere(summed(outputs))
        if unit is not None and len(outputs) > 1:
            gradients = [local_shard(p.grad) for p in self.objective.model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, (unit * world_size() / step.weight).to(unit.dtype))
        return step

    @property
    def trained(self) -> nn.Module:
        """The weights to use: the averaged ones where there are any."""
        return self.objective.model if self.ema is None else self.ema.module

    def save(self, run: Path, write: Callable[..., object] = write_checkpoint) -> None:
        """Write a checkpoint: `trained` and all that resuming needs beside it. Of several ranks the first writes."""
        now = self.checkpoint()
        if is_rank0():
            write(run, self.step, Weights(now.model), now.state)

    def checkpoint(self) -> Checkpoint:
        """Everything as it is now, not copied; what is shared out is put together on rank 0, and nowhere else."""
        return Checkpoint(self.step, full_tensors(self.trained.state_dict()), self.state())

    def state(self) -> dict[str, Tensor]:
        """All that resuming needs beside `trained`. A parameter has moments from its first optimiser step on."""
        state = {f"raw.{name}": value for name, value in self.objective.model.state_dict().items()}
        state |= {f"own.{name}": value for name, value in self.objective.named_buffers(recurse=False)}
        for name, parameter in self.objective.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})  # none of what is frozen yet
            state |= {f"{moment}.{name}": moments[moment] for moment in _MOMENTS if moments}
        state |= {_SKIPPED: torch.tensor(self.skipped)} if self.skipped else {}
        if self.rolls_back:
            losses = torch.tensor(self.spikes.losses, dtype=torch.float64)
            state |= {_ROLLBACKS: torch.tensor(self.rollbacks), _LOSSES: losses}
        return full_tensors(state)

    def restore(self, run: Path) -> None:
        """Take up the newest whole checkpoint; training goes on as if it had not been interrupted.

        Raises:
            CheckpointError: there is none, or its weights do not fit.
        """
        self.load_state(read_checkpoint_on_rank0(run), str(run))

    def load_state(self, checkpoint: Checkpoint, where: str) -> None:
        """Become what a checkpoint holds; `where` it is from is said if it does not fit."""
        state: dict[str, dict[str, Tensor]] = {kind: {} for kind in ("raw", "own", "count", *_MOMENTS)}
        for key, value in checkpoint.state.items():
            kind, name = key.split(".", 1)
            state[kind][name] = value
        load_weights(self.objective.model, state["raw"], where)
        if self.ema is not None:
            load_weights(self.ema.module, checkpoint.model, where)
        for name, value in self.objective.named_buffers(recurse=False):
            value.copy_(state["own"][name])
        self.optimizer.state.clear()  # going back, there may be moments that were not there yet
        for name, parameter in self.objective.model.named_parameters():
            if name not in state["step"]:
                continue
            moments = {moment: state[moment][name].to(parameter.device) for moment in _MOMENTS}
            laid_out = {m: _laid_out_like(parameter, v) if v.ndim else v for m, v in moments.items()}
            self.optimizer.state[parameter] = laid_out
        self.step, self.skipped = checkpoint.step, int(checkpoint.state.get(_SKIPPED, 0))
        self.rollbacks = int(checkpoint.state.get(_ROLLBACKS, 0))
        self.spikes = Spikes(checkpoint.state.get(_LOSSES, torch.empty(0)).tolist())


def _laid_out_like(parameter: nn.Parameter, values: Tensor) -> Tensor:
    moment = torch.empty_like(parameter)
    copy_into(moment, values)
    return moment


def summed(outputs: Sequence[StepOutput]) -> StepOutput:
    """What an objective says about all parts of a batch together."""
    if len(outputs) == 1:
        return outputs[0]
    loss_sum, weight = (torch.stack(values).sum() for values in zip(*(o[:2] for o in outputs), strict=True))
    metrics = {}
    for name in outputs[0].metrics:
        amount, count = (torch.stack(values).sum() for values in zip(*(o.metrics[name] for o in outputs), strict=True))
        metrics[name] = (amount, count)
    return StepOutput(loss_sum, weight, metrics)


def everywhere(output: StepOutput) -> StepOutput:
    """What the objective says about the rows of all ranks together; counts may differ between them."""
    if world_size() == 1:
        return output
    pairs = [value for pair in output.metrics.values() for value in pair]
    loss_sum, weight, *sums = all_reduce_sum(torch.stack([value.double() for value in (*output[:2], *pairs)]))
    metrics = {name: (sums[2 * place], sums[2 * place + 1]) for place, name in enumerate(output.metrics)}
    return StepOutput(loss_sum, weight, metrics)


def means(output: StepOutput) -> dict[str, float]:
    """The loss and every metric of a step as plain numbers."""
    values = {"loss": float((output.loss_sum / output.weight).detach())}
    return values | {name: float(all_reduce_sum / count) for name, (all_reduce_sum, count) in output.metrics.items()}
