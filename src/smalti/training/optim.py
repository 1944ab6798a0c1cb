"""AdamW with the release's decay rules."""

from dataclasses import dataclass

import torch
from torch import nn

from smalti.core.config import require, setting
from smalti.functional.schedules import Cosine


@dataclass(frozen=True)
class AdamW:
    """Optimiser and learning-rate schedule.

    The learning rate is absolute: nothing rescales it with the batch size.

    Reference: BEiT §2.5; Loshchilov and Hutter 2019.
    """

    lr: float = setting(1.5e-3, "at the batch size of the recipe", "BEiT §2.5")
    end_lr: float = setting(1e-5, "at the last step", "released code")
    warmup_ratio: float = setting(0.0125, "share of the steps", "BEiT §2.5: 10 of 800 epochs")
    betas: tuple[float, float] = setting((0.9, 0.999), "decay of the moments", "BEiT §2.5")
    eps: float = setting(1e-8, "added to the root of the second moment", "released code")
    weight_decay: float = setting(0.05, "a step, times the learning rate", "BEiT §2.5")
    clip_grad: float = setting(3.0, "norm", "released recipe")

    def __post_init__(self) -> None:
        require(self.lr > 0, f"a learning rate of {self.lr}", "use a positive one")
        require(
            0 <= self.warmup_ratio < 1, f"a warm-up ratio of {self.warmup_ratio}", "use a share of the steps in [0, 1)"
        )
        require(self.clip_grad > 0, f"a gradient norm of {self.clip_grad}", "use a positive one")

    def build(self, module: nn.Module) -> torch.optim.AdamW:
        """An optimiser over the trained parameters of `module`."""
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                groups[is_decayed(name, parameter)].append(parameter)
        params = [
            {"params": groups[True], "weight_decay": self.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [g for g in params if g["params"]], lr=self.lr, betas=self.betas, eps=self.eps, fused=True
        )

    def schedule(self, steps: int) -> Cosine:
        """The learning rate of each of `steps` steps."""
        return Cosine(self.lr, self.end_lr, steps, warmup=min(int(self.warmup_ratio * steps), steps - 1))


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to vectors, biases, positions and [S]; it does apply to the mask token.

    Reference: released code, optim_factory.py.
    """
    exempt = name.endswith((".bias", "pos_embed", "cls_token"))
    return parameter.ndim > 1 and not exempt
