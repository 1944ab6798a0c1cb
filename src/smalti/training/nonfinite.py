"""Non-finite steps, whose loss or gradient is NaN or infinite: where in the network it begins; captured steps.

A captured step is a folder with all that is needed to compute it again. model.safetensors and state.safetensors are
those of a checkpoint before the step. step.json has the positions and keys of the images in the batch, and loss and
gradient norms. Crops, colours, masks and noise are functions of the keys, and pixels and visual tokens are functions of
the images, so none of these is stored.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from smalti.core.compute import Compute, Device, Precision
from smalti.core.config import from_json
from smalti.core.contracts import Batch
from smalti.core.errors import CheckpointError, NumericError, UsageError
from smalti.core.files import write_folder
from smalti.core.ranks import world_size
from smalti.core.stored import parse_object, read_folder
from smalti.core.tensors import from_safetensors, to_safetensors
from smalti.distributed.collectives import full_tensor
from smalti.training.checkpoint import Checkpoint


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


@dataclass(frozen=True)
class Computed:
    """Resolved device and number format, and the numbers of threads and processes that change the order of sums."""

    device: Device
    precision: Precision
    threads: int
    processes: int = 1


@dataclass(frozen=True)
class CapturedStep:
    """The content of such a folder.

    Attributes:
        index, keys: positions of the images of the batch in the dataset, and their keys.
    """

    before: Checkpoint
    numbers: Numbers
    index: list[int]
    keys: list[int]
    computed: Computed


def write_captured(
    run: Path, before: Checkpoint, batch: Batch, numbers: Numbers, compute: Compute, more: list[Path]
) -> Path:
    """Write `run/captures/step-XXXXXXXX/`.

    Args:
        more: files to copy into the folder, such as the configuration of the run.

    Raises:
        OutputError: it cannot be written.
    """
    folder = run / "captures" / f"step-{before.step:08d}"
    step = {
        "step": before.step,
        **numbers_as_json(numbers),
        "grad_norms": {name: _as_json(norm) for name, norm in numbers.grad_norms.items()},
        "index": batch.index.tolist(),
        "keys": batch.key.tolist(),
        "derived": "crops, colours, masks and noise are functions of the keys",
        "computed": asdict(Computed(compute.device_kind, compute.precision, torch.get_num_threads(), world_size())),
    }
    files = {path.name: path.read_bytes() for path in more}
    files |= {"model.safetensors": to_safetensors(before.model), "state.safetensors": to_safetensors(before.state)}
    write_folder(folder, files | {"step.json": (json.dumps(step, indent=2, allow_nan=False) + "\n").encode()})
    return folder


def read_captured(folder: Path) -> CapturedStep:
    """Read what `write_captured` wrote.

    Raises:
        CheckpointError: the folder is no captured step, or damaged.
    """
    try:
        files = read_folder(folder)
        said = parse_object(files["step.json"])
        norms = {str(name): float(norm) for name, norm in said["grad_norms"].items()}
        return CapturedStep(
            Checkpoint(
                int(said["step"]),
                from_safetensors(files["model.safetensors"]),
                from_safetensors(files["state.safetensors"]),
            ),
            Numbers(float(said["loss"]), float(said["grad_norm"]), norms),
            [int(index) for index in said["index"]],
            [int(key) for key in said["keys"]],
            from_json(Computed, said["computed"], where="computed"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, UsageError, CheckpointError) as error:
        raise CheckpointError(
            f"{folder} is no whole captured step",
            cause=error.cause if isinstance(error, CheckpointError) else f"{error}",
            fix="give a folder in captures/ of a run that stopped at a step that is not finite",
        ) from error


def numbers_as_json(numbers: Numbers) -> dict[str, Any]:
    """Loss and gradient norm as JSON values; NaN and infinities become text."""
    return {"loss": _as_json(numbers.loss), "grad_norm": _as_json(numbers.grad_norm)}


def _as_json(number: float) -> float | str:
    """A number, or text that `float` can read."""
    return number if number - number == 0 else str(number)
