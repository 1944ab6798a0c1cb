"""Exponential moving average of weights."""

import copy

import torch
from torch import Tensor, nn

from smalti.distributed.collectives import local_shard


class EMA:
    """A copy of a module whose weights average the trained ones: w' ← d·w' + (1-d)·w after every step.

    The decay d of step s is min(decay, (1+s)/(10+s)), so that the initial weights do not dominate in short runs.
    Buffers (a codebook, which is an EMA already) are copied.

    Reference: DALL-E, appendix A.2 (0.999).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averaged: list[Tensor] = [local_shard(p.detach()) for p in self.module.parameters()]
        torch._foreach_lerp_(averaged, [local_shard(p.detach()) for p in module.parameters()], weight)
        for own, current in zip(self.module.buffers(), module.buffers(), strict=True):
            own.copy_(current)
