"""Data parallelism: every rank computes its rows of a batch, and gradients are averaged over ranks."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, TypeAlias

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smalti.core.contracts import Batch, Objective, StepOutput
from smalti.core.ranks import world_size
from smalti.models.decoder import CrossAttentionBlock
from smalti.models.layers import Block

Parallel: TypeAlias = Literal["ddp", "fsdp"]
"""A copy of the network on every rank (ddp), or a shard of every weight (fsdp)."""


Strategy: TypeAlias = Callable[[Batch, Tensor, bool], StepOutput]
"""Loss and metrics of the rows of this rank, for a micro-batch, a step, and whether it is the last micro-batch: after
the backward pass of that one, gradients are averaged."""


def strategy_for(objective: Objective, parallel: Parallel) -> Strategy:
    """The strategy for the number of ranks; with FSDP the model of the objective must already be sharded."""
    if world_size() == 1:
        return lambda rows, step, _: objective(rows, step)
    return _sharded(objective) if parallel == "fsdp" else _replicated(objective)


def _replicated(objective: Objective) -> Strategy:
    """Every rank has a copy of the weights of rank 0, whose buffers are broadcast before every step.

    Gradients live in the memory that is sent, so that there is no second copy of them, of 4 bytes a weight.
    """
    # where strides differ, gradients are copied, which is correct
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    module = DistributedDataParallel(objective, gradient_as_bucket_view=True)

    def compute(rows: Batch, step: Tensor, last: bool) -> StepOutput:
        with nullcontext() if last else module.no_sync():
            return module(rows, step)

    return compute


def _sharded(objective: Objective) -> Strategy:
    """Every rank has a shard of each weight and of its moments; the weights of a block are gathered to compute it."""
    from torch.distributed.fsdp import FSDPModule  # takes a second, as below

    model = objective.model
    assert isinstance(model, FSDPModule)

    def compute(rows: Batch, step: Tensor, last: bool) -> StepOutput:
        model.set_requires_gradient_sync(last)
        return objective(rows, step)

    return compute


def shard(model: nn.Module) -> None:
    """Shard a model in place: each Transformer block of encoder and decoder, then the remaining weights.

    Its parameters are replaced, and it may only be called as a whole, by `forward`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(model.parameters()).device  # else that of the machine's GPUs, also where a run is on the CPU
    mesh = init_device_mesh(device.type, (world_size(),))
    for module in model.modules():
        if isinstance(module, Block | CrossAttentionBlock):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
