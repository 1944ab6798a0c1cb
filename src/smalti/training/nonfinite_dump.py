"""A step that failed, kept in a folder: all that computing it again needs, and what it said.

model.safetensors and state.safetensors are those of a checkpoint before the step; step.json says which images the batch
shows, with which keys, and what was computed. Crops, colours, masks and noise are functions of the keys, and pixels and
visual tokens of the images: none of them is stored.
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
    """Where and how: settled, and the numbers of threads and processes, of which the order of sums depends."""

    device: Device
    precision: Precision
    threads: int
    processes: int = 1


@dataclass(frozen=True)
class DumpStep:
    """What a bundle holds.

    Attributes:
        before: everything as it was before the step.
        numbers: what the step computed.
        index, keys: the images of the batch, and the key of each.
        computed: where and how.
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
        num_images: in the data set: positions in the order of images follow from it.
        more: files that are copied into it, such as the configuration of the run.

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
    """What `write_dump` wrote.

    Raises:
        CheckpointError: it is none, or damaged.
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
    """Loss and norm of the gradient; numbers that JSON does not know are written as text."""
    return {"loss": _as_json(numbers.loss), "grad_norm": _as_json(numbers.grad_norm)}


def _as_json(number: float) -> float | str:
    """`float` turns both back."""
    return number if number - number == 0 else str(number)
