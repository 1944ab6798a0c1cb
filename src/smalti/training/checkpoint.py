"""Checkpoints: weights as safetensors, everything else as JSON, written whole or not at all, verified when read."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from smalti.core.errors import CheckpointError
from smalti.core.files import read_folder, write_folder

_NAME = re.compile(r"step-(\d{8})")
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `model` are the weights to use, `state` what resuming needs beside them."""

    step: int
    model: dict[str, Tensor]
    state: dict[str, Tensor]


def write_checkpoint(run: Path, step: int, model: nn.Module, state: dict[str, Tensor]) -> Path:
    """Write `run/checkpoints/step-XXXXXXXX/` and remove all but the two newest.

    Args:
        run: the run folder.
        step: optimiser steps done.
        model: its parameters and persistent buffers become model.safetensors.
        state: further tensors (optimiser, unaveraged weights), state.safetensors.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    files = {
        "model.safetensors": save({name: value.cpu().contiguous() for name, value in model.state_dict().items()}),
        "state.safetensors": save({name: value.detach().cpu().contiguous() for name, value in state.items()}),
        "state.json": (json.dumps({"step": step}) + "\n").encode(),
    }
    write_folder(folder, files)
    for _, old in _checkpoints(run)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def read_checkpoint(run: Path) -> Checkpoint:
    """The newest checkpoint of a run that is whole.

    Raises:
        CheckpointError: there is none; damaged ones are named.
    """
    damaged = []
    for step, folder in _checkpoints(run):
        files = read_folder(folder)
        if files is not None:
            return Checkpoint(step, load(files["model.safetensors"]), load(files["state.safetensors"]))
        damaged.append(folder.name)
    cause = f"damaged: {', '.join(damaged)}" if damaged else "no checkpoints/step-* there"
    raise CheckpointError(f"no usable checkpoint in {run}", cause=cause, fix="give the folder of a finished run")


def load_weights(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Copy parameters and persistent buffers into a module, after checking that every name and shape fits."""
    own = module.state_dict()
    differing = [f"{name} is missing" for name in own.keys() - weights.keys()]
    differing += [f"{name} is not known" for name in weights.keys() - own.keys()]
    differing += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape
    ]
    if differing:
        raise CheckpointError(f"the weights of {where} do not fit", cause="; ".join(sorted(differing)[:3]))
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint, newest first."""
    folder = run / "checkpoints"
    found = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)
