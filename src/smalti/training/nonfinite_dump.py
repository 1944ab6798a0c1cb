"""A folder for a non-finite step, with all that is needed to compute it again.

model.safetensors and state.safetensors are those of a checkpoint before the step. step.json has the positions and keys
of the images in the batch, and loss and gradient norms. Crops, colours, masks and noise are functions of the keys, and
pixels and visual tokens are functions of the images, so none of these is stored.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from smalti.core.compute import Compute, Device, Precision
from smalti.core.config import from_json
from smalti.core.contracts import Batch
from smalti.core.errors import CheckpointError, UsageError
from smalti.core.files import read_folder, write_folder
from smalti.core.ranks import world_size
from smalti.core.tensors import tensors_of
from smalti.training.checkpoint import Checkpoint
from smalti.training.nonfinite import Numbers


@dataclass(frozen=True)
class Computed:
    """Resolved device and number format, and the numbers of threads and processes that change the order of sums."""

    device: Device
    precision: Precision
    threads: int
    processes: int = 1


@dataclass(frozen=True)
class DumpStep:
    """The content of a dump.

    Attributes:
        before: the state of training before the step.
        numbers: loss and gradient norms of the step.
        index, keys: positions of the images of the batch in the dataset, and their keys.
        computed: device, number format, threads and processes.
    """

    before: Checkpoint
    numbers: Numbers
    index: list[int]
    keys: list[int]
    computed: Computed


def write_dump(
    run: Path, before: Checkpoint, batch: Batch, numbers: Numbers, compute: Compute, num_images: int, more: list[Path]
) -> Path:
    """Write `run/captures/step-XXXXXXXX/`.

    Args:
        run: the run folder.
        before: the state of training before the step.
        batch: the images of the step.
        numbers: loss and gradient norms of the step.
        compute: device and number format.
        num_images: size of the dataset, on which the order of images depends.
        more: files to copy into the dump, such as the configuration of the run.

    Raises:
        OutputError: it cannot be written.
    """
    folder, position = run / "captures" / f"step-{before.step:08d}", before.step * len(batch.index)
    step = {
        "step": before.step,
        "loss": _as_json(numbers.loss),
        "grad_norm": _as_json(numbers.grad_norm),
        "grad_norms": {name: _as_json(norm) for name, norm in numbers.grad_norms.items()},
        "first_image": {"epoch": position // num_images, "place": position % num_images},
        "index": batch.index.tolist(),
        "keys": batch.key.tolist(),
        "derived": "crops, colours, masks and noise are functions of the keys",
        "computed": {
            "device": compute.device.type,
            "precision": "bf16" if compute.dtype == torch.bfloat16 else "fp32",
            "threads": torch.get_num_threads(),
            "processes": world_size(),
        },
    }
    tensors = {"model.safetensors": before.model, "state.safetensors": before.state}
    files = {path.name: path.read_bytes() for path in more}
    files |= {name: save({n: v.detach().cpu().contiguous() for n, v in some.items()}) for name, some in tensors.items()}
    write_folder(folder, files | {"step.json": (json.dumps(step, indent=2, allow_nan=False) + "\n").encode()})
    return folder


def read_dump(bundle: Path) -> DumpStep:
    """Read what `write_dump` wrote.

    Raises:
        CheckpointError: the folder is not a dump, or damaged.
    """
    try:
        files = read_folder(bundle)
        said = json.loads(files["step.json"])
        norms = {str(name): float(norm) for name, norm in said["grad_norms"].items()}
        return DumpStep(
            Checkpoint(
                int(said["step"]), tensors_of(files["model.safetensors"]), tensors_of(files["state.safetensors"])
            ),
            Numbers(float(said["loss"]), float(said["grad_norm"]), norms),
            [int(index) for index in said["index"]],
            [int(key) for key in said["keys"]],
            from_json(Computed, said["computed"], where="computed"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, UsageError, CheckpointError) as error:
        raise CheckpointError(
            f"{bundle} is no whole bundle",
            cause=error.cause if isinstance(error, CheckpointError) else f"{error}",
            fix="give a folder in captures/ of a run that stopped at a step that is not finite",
        ) from error


def numbers_as_json(numbers: Numbers) -> dict[str, Any]:
    """Loss and gradient norm as JSON values; NaN and infinities become text."""
    return {"loss": _as_json(numbers.loss), "grad_norm": _as_json(numbers.grad_norm)}


def _as_json(number: float) -> float | str:
    """A number, or text that `float` can read."""
    return number if number - number == 0 else str(number)
