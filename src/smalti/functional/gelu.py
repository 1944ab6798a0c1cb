"""GELU by torch's own kernels, also in networks that are compiled for a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """x Φ(x), exactly, elementwise in the number format of x.

    Between two matrix products it cannot be fused with anything, and on CPUs the code that torch.compile generates
    takes 1.9 times as long as torch's kernel, its gradient 1.7 times; so on CPUs it is a custom operator.

    Reference: Hendrycks and Gimpel 2016.
    """
    if x.device.type == "cpu" and torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        kept_whole: Tensor = _whole(x)
        return kept_whole
    return F.gelu(x)


@torch.library.custom_op("smalti::gelu", mutates_args=())
def _whole(x: Tensor) -> Tensor:
    return F.gelu(x)


@torch.library.custom_op("smalti::gelu_backward", mutates_args=())
def _whole_backward(grad: Tensor, x: Tensor) -> Tensor:
    gradient: Tensor = torch.ops.aten.gelu_backward(grad, x)
    return gradient


def _keep_input(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    gradient: Tensor = _whole_backward(grad, *ctx.saved_tensors)
    return gradient


_whole.register_fake(torch.empty_like)
_whole_backward.register_fake(lambda grad, x: torch.empty_like(x))
_whole.register_autograd(_backward, setup_context=_keep_input)
