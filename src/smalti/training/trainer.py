"""One step of training, the state that steps change, and detection of loss spikes, which often precede divergence."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.core.config import require
from smalti.core.contracts import Batch, Objective, StepOutput
from smalti.core.ranks import is_rank0, world_size
from smalti.distributed.collectives import (
    all_reduce_mean,
    all_reduce_sum,
    distribute_like,
    full_tensor,
    full_tensors,
    local_shard,
)
from smalti.training.checkpoint import Checkpoint, load_weights, write_checkpoint
from smalti.training.nonfinite import NotFiniteError, Numbers
from smalti.training.optim import EMA, Optimiser
from smalti.training.parallel import Parallel, shard, strategy_for
from smalti.training.training_plan import Plan

_MAX_LOSSES = 100
_MIN_LOSSES = 20
"""Number of losses before the first one can count as a spike."""
_DEVIATIONS = 10
_SHARE_OF_MEDIAN = 0.1
_SKIPPED, _ROLLBACKS, _LOSSES = "count.skipped", "count.rollbacks", "count.losses"


class Trainer:
    """The state of training: weights, buffers, moments of the optimiser, EMA weights and the step counter.

    Args:
        ema_decay: decay of the EMA of the weights; None for no EMA.
        frozen: parameters that are not trained, and have no moments, for the first `frozen_steps`.
        frozen_steps: number of those steps.

    Raises:
        UsageError: micro-batches were requested for an objective that needs whole batches; or the number of ranks and
            micro-batches does not divide the batch size.
    """

    def __init__(
        self,
        objective: Objective,
        optimiser: Optimiser,
        plan: Plan,
        ema_decay: float | None = None,
        *,
        frozen: Iterable[nn.Parameter] = (),
        frozen_steps: int = 0,
        parallel: Parallel = "ddp",
    ) -> None:
        require(
            plan.accumulate == 1 or not objective.whole_batches,
            f"accumulate is {plan.accumulate}, and the codes of this tokenizer are counted or moved over whole batches",
            "use --plan.accumulate 1, and a smaller --plan.batch-size where memory is short",
        )
        require(
            plan.batch_size % (plan.accumulate * world_size()) == 0,
            f"a batch of {plan.batch_size} images does not divide into {world_size()} x {plan.accumulate} equal parts",
            "use a multiple of processes times --plan.accumulate",
        )
        scaled = optimiser.scaled_to(plan.batch_size)
        self.objective = objective
        self.ema = None if ema_decay is None else EMA(objective.model, ema_decay)
        if parallel == "fsdp" and world_size() > 1:
            shard(objective.model)
            if self.ema is not None:
                shard(self.ema.module)
        self.strategy = strategy_for(objective, parallel)
        self.accumulate = plan.accumulate
        self.clip_grad = scaled.clip_grad
        self.scaling = optimiser.scaling(plan.batch_size)
        self.settings = scaled
        self.optimizer: torch.optim.Optimizer = scaled.build(objective.model)
        self.lr: Callable[[int], float] = scaled.lr_schedule(plan.steps)
        self.frozen = tuple(frozen)  # consumed after sharding, which replaces parameters
        self.frozen_steps = frozen_steps
        self.step = 0
        self.skipped = 0
        self.rolls_back, self.rollbacks, self.spikes = plan.rollback > 0, 0, SpikeDetector()

    @property
    def checkpoint_bytes(self) -> int:
        """About how large a checkpoint will be: weights, their average, and the moments of those that learn."""
        model = self.objective.model
        weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        return weights * (1 if self.ema is None else 2) + self.settings.moments_bytes(model)

    def train_step(self, batch: Batch, compute: Compute, with_metrics: bool = True) -> tuple[StepOutput, Tensor]:
        """One optimiser step.

        Args:
            batch: as many images as the plan says.

        Returns:
            Loss and metrics of the batch, and the norm of the gradient before clipping.

        Raises:
            NotFiniteError: loss or gradient is NaN or infinite; no weight has changed.
        """
        self.objective.with_metrics = with_metrics
        output, norm = self.gradients(batch, compute)
        model = self.objective.model
        if not torch.isfinite(norm + output.loss_sum):
            numbers = Numbers.of(model, output.loss_sum / output.weight, norm)
            self.optimizer.zero_grad(set_to_none=True)
            raise NotFiniteError(self.step, numbers)
        nn.utils.clip_grads_with_norm_(model.parameters(), self.clip_grad, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(self.step + 1) * group.get("lr_scale", 1.0)
        with compute.autocast():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.objective.after_step(self.step)
        if self.ema is not None:
            self.ema.update(self.objective.model, self.step)
        return output, norm

    def skip_step(self) -> None:
        """Skip a non-finite step: it is counted, its images are not seen again, and nothing else changes."""
        self.step += 1
        self.skipped += 1

    def roll_back(self, checkpoint: Checkpoint, where: str) -> None:
        """Load the state of a checkpoint but keep the step counter, so the images since the checkpoint are left out.

        The counters of skipped steps and roll-backs are kept as well.
        """
        step, skipped, rollbacks = self.step, self.skipped, self.rollbacks
        self.load_state(checkpoint, where)
        self.step, self.skipped, self.rollbacks = step, skipped, rollbacks + 1

    def gradients(self, batch: Batch, compute: Compute) -> tuple[StepOutput, Tensor]:
        """Compute gradients into `grad`. Returns loss and metrics of the batch, and the norm of the gradient."""
        output = self._gradients(batch, compute)
        if self.step < self.frozen_steps:
            for parameter in self.frozen:
                parameter.grad = None  # it is skipped: no weight decay, and no moments until the first gradient
        gradients = [p.grad for p in self.objective.model.parameters() if p.grad is not None]
        return output, full_tensor(nn.utils.get_total_norm(gradients))

    def _gradients(self, batch: Batch, compute: Compute) -> StepOutput:
        """Compute the gradient of the mean loss into `grad`; returns the sums of losses and weights.

        The sum of the weights, by which the loss is to be divided, is known only after the last micro-batch. Until then
        losses are divided by the weight of the first micro-batch (its mean over ranks), so that gradients have about
        the right scale, and with several micro-batches the gradients are corrected at the end. A weight may be 0, as of
        pixels that are all void: weights are whole numbers, so the divisors are at least 1 over all ranks.
        """
        outputs: list[StepOutput] = []
        unit: Tensor | None = None
        for part in batch.split(self.accumulate):
            last = len(outputs) == self.accumulate - 1
            with compute.autocast():
                output = self.strategy(part, torch.tensor(self.step), last)
            unit = all_reduce_mean(output.weight).clamp(min=1 / world_size()) if unit is None else unit
            (output.loss_sum / unit).backward()
            outputs.append(output._replace(loss_sum=output.loss_sum.detach()))
        step = all_reduce_output(sum_outputs(outputs))
        if unit is not None and len(outputs) > 1:
            gradients = [local_shard(p.grad) for p in self.objective.model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, (unit * world_size() / step.weight.clamp(min=1)).to(unit.dtype))
        return step

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and saved: the EMA of the weights if there is one."""
        return self.objective.model if self.ema is None else self.ema.module

    def save(self, run: Path, write: Callable[..., object] = write_checkpoint) -> None:
        """Write a checkpoint of `eval_model` and the rest of the state; rank 0 writes."""
        now = self.checkpoint()
        if is_rank0():
            write(run, self.step, now.model, now.state)

    def checkpoint(self) -> Checkpoint:
        """The current state, without a copy; sharded tensors are gathered to rank 0 only."""
        return Checkpoint(self.step, full_tensors(self.eval_model.state_dict()), self.state())

    def state(self) -> dict[str, Tensor]:
        """What resuming needs besides the weights of `eval_model`: moments, counters, and with an EMA raw weights."""
        raw = {} if self.ema is None else self.objective.model.state_dict()
        state = {f"raw.{name}": value for name, value in raw.items()}
        state |= {f"own.{name}": value for name, value in self.objective.named_buffers(recurse=False)}
        for name, parameter in self.objective.model.named_parameters():
            known = self.optimizer.state.get(parameter, {})  # none for parameters that are still frozen
            state |= {f"{moment}.{name}": known[moment] for moment in self.settings.moments(name, parameter) if known}
        state |= {_SKIPPED: torch.tensor(self.skipped)} if self.skipped else {}
        if self.rolls_back:
            losses = torch.tensor(list(self.spikes.losses), dtype=torch.float64)
            state |= {_ROLLBACKS: torch.tensor(self.rollbacks), _LOSSES: losses}
        return full_tensors(state)

    def load_state(self, checkpoint: Checkpoint, where: str) -> None:
        """Load the state of a checkpoint; `where` it is from appears in error messages.

        Earlier versions wrote the weights to it without an EMA, too.
        """
        state: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in checkpoint.state.items():
            kind, name = key.split(".", 1)
            state[kind][name] = value
        load_weights(self.objective.model, state["raw"] or checkpoint.model, where)
        if self.ema is not None:
            load_weights(self.ema.module, checkpoint.model, where)
        for name, value in self.objective.named_buffers(recurse=False):
            value.copy_(state["own"][name])
        self.optimizer.state.clear()  # in a roll-back, some moments may be newer than the checkpoint
        for name, parameter in self.objective.model.named_parameters():
            moments = self.settings.moments(name, parameter)
            if all(name in state[moment] for moment in moments):  # a run that goes on with the other one starts anew
                own = {moment: state[moment][name].to(parameter.device) for moment in moments}
                laid_out = {m: distribute_like(parameter, v) if v.ndim else v for m, v in own.items()}
                self.optimizer.state[parameter] = laid_out
        self.step, self.skipped = checkpoint.step, int(checkpoint.state.get(_SKIPPED, 0))
        self.rollbacks = int(checkpoint.state.get(_ROLLBACKS, 0))
        self.spikes = SpikeDetector(checkpoint.state.get(_LOSSES, torch.empty(0)).tolist())


def sum_outputs(outputs: Sequence[StepOutput]) -> StepOutput:
    """The sum over the outputs of all micro-batches."""
    if len(outputs) == 1:
        return outputs[0]
    loss_sum, weight = (torch.stack(values).sum() for values in zip(*(o[:2] for o in outputs), strict=True))
    metrics = {}
    for name in outputs[0].metrics:
        amount, count = (torch.stack(values).sum() for values in zip(*(o.metrics[name] for o in outputs), strict=True))
        metrics[name] = (amount, count)
    return StepOutput(loss_sum, weight, metrics)


def all_reduce_output(output: StepOutput) -> StepOutput:
    """All-reduce: the sum over the outputs of all ranks, whose counts may differ."""
    if world_size() == 1:
        return output
    pairs = [value for pair in output.metrics.values() for value in pair]
    loss_sum, weight, *sums = all_reduce_sum(torch.stack([value.double() for value in (*output[:2], *pairs)]))
    metrics = {name: (sums[2 * place], sums[2 * place + 1]) for place, name in enumerate(output.metrics)}
    return StepOutput(loss_sum, weight, metrics)


def mean_metrics(output: StepOutput) -> dict[str, float]:
    """Mean loss and metrics as numbers, by name; 0 where nothing was counted."""
    values = {"loss": float((output.loss_sum / output.weight.clamp(min=1)).detach())}
    return values | {name: float(amount / count.clamp(min=1)) for name, (amount, count) in output.metrics.items()}


class SpikeDetector:
    """Keeps the last 100 logged losses, and warns when a loss is far above them.

    Far means above their median by ten times their median absolute deviation (about seven standard deviations of normal
    noise), and by a tenth of the median. With roll-backs the losses are part of a checkpoint; otherwise a resumed run
    starts to collect again.
    """

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self.losses: deque[float] = deque(losses, maxlen=_MAX_LOSSES)

    def check(self, step: int, loss: float) -> str:
        """A warning about the loss of a step; empty where it is no spike."""
        before = list(self.losses)
        self.losses.append(loss)
        if len(before) < _MIN_LOSSES:
            return ""
        usual = median(before)
        deviation = median(abs(one - usual) for one in before)
        if loss <= usual + max(_DEVIATIONS * deviation, _SHARE_OF_MEDIAN * abs(usual)):
            return ""
        return (
            f"warning: the loss jumps to {loss:.4g} at step {step}; the median of the last {len(before)} logged is"
            f" {usual:.4g}; should it not come back, lower --optimiser.lr"
        )
