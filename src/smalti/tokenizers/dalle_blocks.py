"""The building blocks of the DALL-E tokenizer: groups of residual blocks, one group per resolution."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

Kernels: TypeAlias = tuple[int, int, int, int]


class Conv(nn.Conv2d):
    """A convolution that keeps the size, with weights from N(0, 1/fan_in) and biases 0."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__(n_in, n_out, kernel, padding=kernel // 2)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.weight[0].numel()))
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class Block(nn.Module):
    """x + gain · (four times ReLU and convolution); a 1x1 convolution of x where the number of channels changes.

    Args:
        n_in, n_out: channels of input and output; the branch has n_out/4.
        kernels: sizes of the four convolutions: 3, 3, 3, 1 in the encoder, 1, 3, 3, 3 in the decoder.
        gain: 1/layers², so that the sum over the branches of all layers starts small.
    """

    def __init__(self, n_in: int, n_out: int, kernels: Kernels, gain: float) -> None:
        super().__init__()
        self.gain = gain
        widths = (n_in, n_out // 4, n_out // 4, n_out // 4, n_out)
        layers: list[tuple[str, nn.Module]] = []
        for number, kernel in enumerate(kernels):
            # The first ReLU must not change x, which is added later; the others may work in place.
            layers.append((f"relu_{number + 1}", nn.ReLU(inplace=number > 0)))
            layers.append((f"conv_{number + 1}", Conv(widths[number], widths[number + 1], kernel)))
        self.id_path = nn.Identity() if n_in == n_out else Conv(n_in, n_out, 1)
        self.res_path = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B _ H W"]:
        return torch.add(self.id_path(x), self.res_path(x), alpha=self.gain)


def groups(n_in: int, widths: Sequence[int], depth: int, kernels: Kernels, resampling: nn.Module) -> nn.Sequential:
    """A group of `depth` blocks per width, with `resampling` between groups. Names are those of the published code."""
    gain = 1 / (len(widths) * depth) ** 2
    layers: dict[str, nn.Module] = {}
    for level, width in enumerate(widths):
        if level:
            layers[f"resample_{level}"] = resampling
        blocks: dict[str, nn.Module] = {}
        for number in range(depth):
            blocks[f"block_{number + 1}"] = Block(width if number else n_in, width, kernels, gain)
        layers[f"group_{level + 1}"] = nn.Sequential(OrderedDict(blocks))
        n_in = width
    return nn.Sequential(OrderedDict(layers))
