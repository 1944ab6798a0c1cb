"""An objective on all ranks: each computes its rows of a batch, and gradients are means over all of them."""

import warnings
from contextlib import nullcontext
from typing import Literal, Protocol, TypeAlias

from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smalti.core.contracts import Batch, Objective, StepOutput
from smalti.core.ranks import world_size
from smalti.models.layers import Block

Parallel: TypeAlias = Literal["ddp", "fsdp"]
"""A copy of the network on every rank, or a part of every weight."""


class Strategy(Protocol):
    """Computes what the objective says about the rows of this rank."""

    def __call__(self, rows: Batch, step: Int[Tensor, ""], *, last: bool) -> StepOutput:
        """After the backward pass of the `last` part of a batch, gradients are means over all ranks."""
        ...


class SingleProcess:
    """One process: the objective as it is."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, rows: Batch, step: Int[Tensor, ""], *, last: bool) -> StepOutput:
        return self.objective(rows, step)


class DDP:
    """The same weights on every rank, those of rank 0; its buffers too, before every step."""

    def __init__(self, objective: Objective) -> None:
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # copied, which is right
        self.module = DistributedDataParallel(objective)

    def __call__(self, rows: Batch, step: Int[Tensor, ""], *, last: bool) -> StepOutput:
        with nullcontext() if last else self.module.no_sync():
            return self.module(rows, step)


class FSDP:
    """Every rank holds a part of each weight, and of its moments; blocks are put together while they compute."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, rows: Batch, step: Int[Tensor, ""], *, last: bool) -> StepOutput:
        from torch.distributed.fsdp import FSDPModule  # takes a second, as below

        assert isinstance(self.objective.model, FSDPModule)
        self.objective.model.set_requires_gradient_sync(last)
        return self.objective(rows, step)


def strategy_for(objective: Objective, parallel: Parallel) -> Strategy:
    """The objective on the ranks that there are; of a sharded one the model is."""
    if world_size() == 1:
        return SingleProcess(objective)
    return FSDP(objective) if parallel == "fsdp" else DDP(objective)


def shard(model: nn.Module) -> None:
    """Share out the weights of a model: one Transformer block after the other, then what is left.

    In place: its parameters are replaced. What calls the model must call it as a whole, by `forward`.
    """
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module)
    fully_shard(model)
