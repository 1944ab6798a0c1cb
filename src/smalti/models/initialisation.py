"""Initialisation of weights."""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

Init: TypeAlias = Literal["uniform", "trunc1", "trunc2", "width", "xavier"]


@torch.no_grad()
def initialise(model: nn.Module, init: Init, embed_dim: int) -> None:
    """Draw all weights; biases 0, LayerNorm 1 and 0, then rescale the output matrices of block l by 1/√(2l).

    LayerScale and tables of relative positions keep the values from their constructors.

    - `uniform`: as in the paper, every weight uniform in [-0.02, 0.02]; standard deviation 0.01155. Suited to D = 768:
      at D = 128 activations become too small and the first hundreds of steps learn nothing.
    - `trunc1`: as in the released code, N(0, 0.02²) truncated at ±0.02; standard deviation 0.01079.
    - `trunc2`: N(0, 0.02²) truncated at ±0.04, as many descriptions have it; standard deviation 0.01759.
    - `width`: uniform with standard deviation 0.02·√(768 / D); tokens and positions as in `uniform`.
    - `xavier`: uniform in ±√(6 / (fan_in + fan_out)) for matrices; tokens and positions as in `uniform`.

    Reference: BEiT §2.5; the released code, modeling_pretrain.py.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1)
        elif "gamma" not in name and not name.endswith("bias_table"):
            is_token = name.endswith(("cls_token", "pos_embed", "mask_token"))
            _draw(parameter, "uniform" if is_token and init in ("width", "xavier") else init, embed_dim)
    for layer, block in enumerate(getattr(model, "blocks", []), start=1):
        block.attn.proj.weight.div_(math.sqrt(2 * layer))
        block.mlp.fc2.weight.div_(math.sqrt(2 * layer))


def _draw(parameter: Tensor, init: Init, embed_dim: int) -> None:
    match init:
        case "uniform":
            parameter.uniform_(-0.02, 0.02)
        case "trunc1":
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.02, b=0.02)
        case "trunc2":
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
        case "width":
            bound = math.sqrt(3) * 0.02 * math.sqrt(768 / embed_dim)
            parameter.uniform_(-bound, bound)
        case "xavier":
            nn.init.xavier_uniform_(parameter.view(len(parameter), -1))
