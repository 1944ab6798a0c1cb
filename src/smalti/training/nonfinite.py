"""Non-finite steps, whose loss or gradient is NaN or infinite: their values, and where in the network these begin."""

import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from smalti.core.errors import NumericError
from smalti.distributed.collectives import full_tensor


@dataclass(frozen=True)
class Numbers:
    """Loss and gradient norms of a step before clipping, some of which are NaN or infinite.

    Attributes:
        loss: mean over the batch.
        grad_norm: L2 norm of the whole gradient.
        grad_norms: L2 norm of the gradient of each parameter that has one, by name.
    """

    loss: float
    grad_norm: float
    grad_norms: dict[str, float]

    @staticmethod
    def of(model: nn.Module, loss: Tensor, grad_norm: Tensor) -> "Numbers":
        """The numbers of a step whose gradients are in `grad` of the parameters."""
        norms = {name: float(full_tensor(p.grad.norm())) for name, p in model.named_parameters() if p.grad is not None}
        return Numbers(float(loss), float(grad_norm), norms)

    def same(self, other: "Numbers") -> bool:
        """Whether all are equal bit by bit; NaN equals NaN."""
        return repr(self) == repr(other)


class NotFiniteError(NumericError):
    """Loss or gradient of a step is not finite; no weight has changed.

    Attributes:
        step: optimiser step, counted from 0.
        numbers: its loss and gradient norms.
    """

    def __init__(self, step: int, numbers: Numbers, capture: Path | None = None) -> None:
        self.step, self.numbers = step, numbers
        what = "loss" if math.isfinite(numbers.grad_norm) else "gradient"
        advice = "lower the learning rate or lengthen the warm-up (--optimiser.lr, --optimiser.warmup-ratio)"
        shown = (
            "" if capture is None else f"; the step is kept, look at it with smalti replay {shlex.quote(str(capture))}"
        )
        super().__init__(
            f"the {what} is not finite at step {step}", cause=f"loss {numbers.loss:g}", fix=f"{advice}{shown}"
        )


class Place(NamedTuple):
    """Where a number is first not finite.

    Attributes:
        kind: `weight` before the step, `activation` in the forward pass, `loss`, `gradient` in the backward pass.
        name: the parameter, or the module whose output (or gradient of the output) it is; "" for the loss.
    """

    kind: str
    name: str


def first_not_finite(model: nn.Module, step: Callable[[], Numbers]) -> Place | None:
    """Compute a step and find the first module with a non-finite output or gradient; None where all are finite.

    Of nested modules the innermost is named. What is computed between two modules is attributed to the second.

    Args:
        model: the network.
        step: runs forward and backward passes through `model`.
    """
    for name, value in model.state_dict().items():
        if not _finite(value):
            return Place("weight", name)
    with _watched(model) as places:
        numbers = step()
    if places and places[0].kind == "activation":
        return places[0]
    if not math.isfinite(numbers.loss):
        return Place("loss", "")
    if places:
        return places[0]
    bad = [name for name, norm in numbers.grad_norms.items() if not math.isfinite(norm)]
    return Place("gradient", bad[-1]) if bad else None


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[Place]]:
    """A list to which hooks append the places of non-finite numbers, in the order of computation."""
    places: list[Place] = []

    def look(name: str, output: object) -> None:
        for value in _tensors(output):
            if not _finite(value):
                places.append(Place("activation", name))
            if value.requires_grad:
                value.register_hook(
                    lambda gradient: None if _finite(gradient) else places.append(Place("gradient", name))
                )

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda _, __, output: look(name, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        yield places
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
