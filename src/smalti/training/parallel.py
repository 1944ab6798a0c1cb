"""Data parallelism: every rank computes its rows of a batch, and gradients are averaged over ranks."""

import warnings
from contextlib import nullcontext
from typing import Literal, Protocol, TypeAlias

from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smalti.core.contracts import Batch, Objective, StepOutput
from smalti.core.ranks import world_size
from smalti.models.decoder import CrossAttentionBlock
from smalti.models.layers import Block

Parallel: TypeAlias = Literal["ddp", "fsdp"]
"""A copy of the network on every rank (ddp), or a shard of every weight (fsdp)."""


class Strategy(Protocol):
    """Computes an objective on the rows of this rank."""

    def __call__(self, rows: Batch, step: Int[Tensor, ""], *, last: bool) -> StepOutput:
        """Loss and metrics of a micro-batch; after the backward pass of the `last` one, gradients are averaged."""
        ...


class SingleProcess:
    """One process, which calls the objective directly."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, rows: Batch, step: Int[Tensor, ""], *, last: bool) -> StepOutput:
        return self.objective(rows, step)


class DDP:
    """Every rank has a copy of the weights of rank 0, whose buffers are broadcast before every step."""

    def __init__(self, objective: Objective) -> None:
        warnings.filterwarnings(
            "ignore", "Grad strides do not match bucket view strides"
        )  # they are copied then, which is correct
        self.module = DistributedDataParallel(objective)

    def __call__(self, rows: Batch, step: Int[Tensor, ""], *, last: bool) -> StepOutput:
        with nullcontext() if last else self.module.no_sync():
            return self.module(rows, step)


class FSDP:
    """Every rank has a shard of each weight and of its moments; the weights of a block are gathered to compute it."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, rows: Batch, step: Int[Tensor, ""], *, last: bool) -> StepOutput:
        from torch.distributed.fsdp import FSDPModule  # takes a second, as below

        assert isinstance(self.objective.model, FSDPModule)
        self.objective.model.set_requires_gradient_sync(last)
        return self.objective(rows, step)


def strategy_for(objective: Objective, parallel: Parallel) -> Strategy:
    """The strategy for the number of ranks; with FSDP the model of the objective must already be sharded."""
    if world_size() == 1:
        return SingleProcess(objective)
    return FSDP(objective) if parallel == "fsdp" else DDP(objective)


def shard(model: nn.Module) -> None:
    """Shard a model in place: each Transformer block of encoder and decoder, then the remaining weights.

    Its parameters are replaced, and it may only be called as a whole, by `forward`.
    """
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        if isinstance(module, Block | CrossAttentionBlock):
            fully_shard(module)
    fully_shard(model)
