"""AdamW or Muon, parameters with weight decay, learning rates by batch size, and the moving average of weights."""

import copy
import re
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from smalti.core.config import require, setting
from smalti.distributed.collectives import local_shard
from smalti.functional.schedules import Cosine
from smalti.training.muon import MuonAdamW

DecayRule: TypeAlias = Literal["release", "timm"]
"""Which parameters have weight decay; see `is_decayed`."""


Matrices: TypeAlias = Literal["adamw", "muon"]
"""What updates the weight matrices of Transformer blocks; see `is_matrix_of_block`."""


@dataclass(frozen=True)
class Optimiser:
    """Optimiser and learning-rate schedule.

    The learning rate does not depend on the batch size unless `lr_batch_size` is set, the batch size for which it is
    given. Then `lr` and `end_lr` are scaled in proportion to the batch size of the run (`scaled_to`), which says so.

    With `matrices` as `muon`, Muon updates the weight matrices of Transformer blocks (`training.muon`), with the same
    learning rate, schedule and weight decay, and AdamW everything else.

    Reference: BEiT §2.5; Loshchilov and Hutter 2019; Goyal et al. 2017, §2.1 (in proportion to the batch).
    """

    lr: float = setting(1.5e-3, "at the batch size of the recipe", "BEiT §2.5")
    end_lr: float = setting(1e-5, "at the last step", "BEiT, table 12")
    lr_batch_size: int | None = setting(
        None, "images in a step, at which lr and end_lr are meant: in proportion for other batches; none: as they are"
    )
    schedule: Literal["cosine", "constant"] = setting(
        "cosine", "after the warm-up: half a cosine down to end_lr, or lr to the end", "BEiT §2.5"
    )
    warmup_ratio: float = setting(0.0125, "share of the steps", "BEiT §2.5: 10 of 800 epochs")
    decay_ratio: float = setting(1.0, "share of the steps until end_lr")
    betas: tuple[float, float] = setting((0.9, 0.999), "decay of the moments", "BEiT §2.5")
    eps: float = setting(1e-8, "added to the root of the second moment", "released code")
    weight_decay: float = setting(0.05, "a step, times the learning rate", "BEiT §2.5")
    decay_rule: DecayRule = setting("release", "which weights decay: release, or timm (no table of positions)")
    clip_grad: float = setting(3.0, "the norm that a gradient has at most", "BEiT, table 12")
    layer_decay: float = setting(
        1.0, "learning rate of a layer by that of the layer above it; 1: all alike", "released code, optim_factory.py"
    )
    matrices: Matrices = setting(
        "adamw", "optimiser of the weight matrices of blocks: adamw, or muon, which learns more a step", "BEiT §2.5"
    )

    def __post_init__(self) -> None:
        require(self.lr > 0, f"a learning rate of {self.lr}", "use a positive one")
        require(
            self.lr_batch_size is None or self.lr_batch_size >= 1,
            f"a learning rate at a batch of {self.lr_batch_size}",
            "use at least 1, or none",
        )
        require(
            0 <= self.warmup_ratio < 1, f"a warm-up ratio of {self.warmup_ratio}", "use a share of the steps in [0, 1)"
        )
        require(
            self.warmup_ratio < self.decay_ratio <= 1,
            f"a decay ratio of {self.decay_ratio}",
            "use a share of the steps in (warmup_ratio, 1]",
        )
        for name in ("end_lr", "weight_decay"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}", "use 0 or more")
        require(self.eps > 0, f"eps is {self.eps}", "use a positive one")
        require(0 < self.layer_decay <= 1, f"a layer decay of {self.layer_decay}", "use one in (0, 1]")
        require(self.clip_grad > 0, f"a gradient norm of {self.clip_grad}", "use a positive one")

    def scaled_to(self, batch_size: int) -> "Optimiser":
        """The optimiser with the learning rate scaled to a batch size.

        Args:
            batch_size: images per optimiser step, over all micro-batches and processes.
        """
        if self.lr_batch_size is None:
            return self
        scale = batch_size / self.lr_batch_size
        return replace(self, lr=self.lr * scale, end_lr=self.end_lr * scale, lr_batch_size=None)

    def scaling(self, batch_size: int) -> str:
        """A message that says how `scaled_to` scales the learning rate; empty where it does not."""
        if self.lr_batch_size is None:
            return ""
        used = _short(self.scaled_to(batch_size).lr)
        return f"learning rate {_short(self.lr)} at batch {self.lr_batch_size} -> {used} at batch {batch_size}"

    def build(self, module: nn.Module) -> torch.optim.AdamW | MuonAdamW:
        """An optimiser of the parameters of `module` that require a gradient.

        The learning rate of each parameter group is multiplied by its `lr_scale`.

        Raises:
            UsageError: Muon, and no weight matrix of a Transformer block learns.
        """
        others = torch.optim.AdamW(self._groups(module, False), lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
        if self.matrices == "adamw":
            return others
        matrices = self._groups(module, True)
        require(
            bool(matrices),
            "no weight matrix of a Transformer block learns, and Muon is for these",
            "use --optimiser.matrices adamw",
        )
        return MuonAdamW([{"lr": self.lr} | group for group in matrices], others)

    def _groups(self, module: nn.Module, matrices: bool) -> list[dict[str, Any]]:
        """Parameter groups by layer and weight decay, of the matrices that Muon updates or of all others."""
        names = [name for name, _ in module.named_parameters()]
        top = max(map(block_of, names), default=-1) + 2
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and self._by_muon(name, parameter) == matrices:
                layer = layer_of(name, top) if self.layer_decay < 1 else top
                groups.setdefault((layer, is_decayed(name, parameter, self.decay_rule)), []).append(parameter)
        return [
            {
                "params": groups[layer, decayed],
                "weight_decay": self.weight_decay if decayed else 0.0,
                "lr_scale": self.layer_decay ** (top - layer),
            }
            for layer, decayed in sorted(groups, reverse=True)
        ]

    def _by_muon(self, name: str, parameter: nn.Parameter) -> bool:
        return self.matrices == "muon" and is_matrix_of_block(name, parameter)

    def moments(self, name: str, parameter: nn.Parameter) -> tuple[str, ...]:
        """The names of what the optimiser keeps of a parameter: averages of its gradient, and AdamW a step counter."""
        return ("momentum",) if self._by_muon(name, parameter) else ("step", "exp_avg", "exp_avg_sq")

    def moments_bytes(self, module: nn.Module) -> int:
        """How large the averages are that the optimiser keeps of the gradients of a network."""
        return sum(
            parameter.numel() * parameter.element_size() * len(set(self.moments(name, parameter)) - {"step"})
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        )

    def lr_schedule(self, steps: int) -> Cosine:
        """The learning rate of each of `steps` steps."""
        until = max(1, int(self.decay_ratio * steps))
        end = self.lr if self.schedule == "constant" else self.end_lr
        return Cosine(self.lr, end, until, warmup=min(int(self.warmup_ratio * steps), until - 1))


_ABOVE = ("decoder.", "aggregation.")
"""Parts of a masked image model whose blocks are not the encoder's."""


def block_of(name: str) -> int:
    """The encoder block of a parameter, counted from 0; -1 where it is in none."""
    found = None if name.startswith(_ABOVE) else re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    return int(found[1]) if found else -1


def is_matrix_of_block(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a weight matrix of a Transformer block: of encoder, decoder or aggregation.

    Queries, keys and values of a block are one parameter, and so one matrix, where Jordan et al. take three.
    """
    return parameter.ndim == 2 and ".blocks." in f".{name}" and name.endswith(".weight")


def layer_of(name: str, top: int) -> int:
    """The layer of a parameter for layer-wise decay: 0 for what comes before the blocks, i + 1 for block i, else `top`.

    Reference: released code, optim_factory.py, get_num_layer_for_vit: [S], mask token, positions and patch embedding
    are 0; a relative position table that all blocks share, the final norm and the head are at the top.
    """
    if name.startswith(_ABOVE):
        return top
    if name.endswith(("cls_token", "mask_token", "pos_embed")) or "patch_embed." in name:
        return 0
    block = block_of(name)
    return top if block < 0 else block + 1


def is_decayed(name: str, parameter: nn.Parameter, rule: DecayRule = "release") -> bool:
    """Whether a parameter has weight decay.

    - `release`: all but vectors (biases, LayerNorm, LayerScale), learned positions and [S]. The mask token and the
      relative position table, which are not vectors, have it.
    - `timm`: as `release`, but not the relative position table. timm's BEiT has no mask token; ours has weight decay.

    Reference: released code, optim_factory.py; timm, models/beit.py, no_weight_decay.
    """
    exempt = name.endswith((".bias", "pos_embed", "cls_token"))
    exempt |= rule == "timm" and name.endswith("relative_position_bias_table")
    return parameter.ndim > 1 and not exempt


def _short(rate: float) -> str:
    """A learning rate in short form, as 1.5e-3."""
    digits, exponent = f"{rate:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


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
