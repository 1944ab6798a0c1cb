"""Checkpoints: weights as safetensors, everything else as JSON, written whole or not at all, verified when read.

A checkpoint takes its name when every byte of it is on the disk, and only then are older ones removed. Two that are
known to be whole always stay.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import TracebackType

import torch
from safetensors.torch import save
from torch import Tensor, nn

from smalti import __version__
from smalti.core.errors import CheckpointError, OutputError, SmaltiError
from smalti.core.files import REPLACED, is_whole, read_folder, remove_folder, write_folder
from smalti.core.log import Log
from smalti.core.tensors import tensors_of

FOLDER = "checkpoints"

_NAME = re.compile(rf"(step-(\d{{8}}))({re.escape(REPLACED)})?")
_KEPT = 2
_FORMAT = 1
"""Changes when an older smalti would misread what is written. What has no number is of the first."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `model` are the weights to use, `state` what resuming needs beside them."""

    step: int
    model: dict[str, Tensor]
    state: dict[str, Tensor]


def write_checkpoint(run: Path, step: int, model: nn.Module, state: Mapping[str, Tensor]) -> Path:
    """Write `run/checkpoints/step-XXXXXXXX/`; then remove all but this one and the newest that is whole beside it.

    Args:
        run: the run folder.
        step: optimiser steps done.
        model: its parameters and persistent buffers become model.safetensors.
        state: further tensors (optimiser, unaveraged weights), state.safetensors.

    Raises:
        OutputError: it cannot be written; what was there is still there.
    """
    return _write(run, step, model.state_dict(), state, set())


class BackgroundWriter:
    """`write_checkpoint` on a thread of its own: training waits only for a copy of the tensors.

    A failure is raised by what comes next: another write, `wait` or the end of the `with` block.

    Args:
        before: called in the thread of the caller before each write; what it raises is raised.
    """

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self._before = before
        self._whole: set[Path] = set()
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def write(self, run: Path, step: int, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Begin to write a checkpoint, when the one before is done.

        Raises:
            OutputError: the one before could not be written.
        """
        self.wait()
        self._before()
        tensors = _copied(model.state_dict()), _copied(state)
        self._thread = Thread(target=self._write, args=(run, step, *tensors), name=f"checkpoint of step {step}")
        self._thread.start()

    def wait(self) -> None:
        """Come back when everything is on the disk.

        Raises:
            OutputError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, SmaltiError):
            raise error
        if error is not None:
            raise OutputError("cannot write a checkpoint", cause=f"{type(error).__name__}: {error}") from error

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()

    def _write(self, run: Path, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        try:
            _write(run, step, model, state, self._whole)
        except BaseException as error:
            self._error = error


def read_checkpoint(run: Path) -> Checkpoint:
    """The newest checkpoint of a run that is whole. One that is passed over is named, with the reason.

    The run may be writing: a checkpoint that has made way for newer ones meanwhile is not damaged, and those are read.

    Raises:
        CheckpointError: there is none (damaged ones are named), or the newest is of another format.
    """
    damaged: list[str] = []
    found = _checkpoints(run)
    while found:
        step, folder = found.pop(0)
        try:
            checkpoint = _read(step, folder)
        except _DamagedError as error:
            now = _checkpoints(run)
            if (step, folder) not in now and now[:1] > [(step, folder)]:
                found, damaged = now, []
            else:
                damaged.append(f"{folder.name} ({error})")
            continue
        if damaged:
            Log().say(f"{run}: damaged: {', '.join(damaged)}; {folder.name} is used in its place")
        return checkpoint
    cause = f"damaged: {', '.join(damaged)}" if damaged else f"no {FOLDER}/step-* there"
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


class _DamagedError(Exception):
    """Why a checkpoint is passed over."""


def _read(step: int, folder: Path) -> Checkpoint:
    try:
        files = read_folder(folder)
    except CheckpointError as error:
        raise _DamagedError(error.cause) from error
    try:
        about = json.loads(files["state.json"])
        found, written = about["step"], about.get("format", 1)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError("state.json cannot be understood") from error
    if written != _FORMAT:
        raise CheckpointError(
            f"{folder} is of format {written}",
            cause=f"smalti {about.get('smalti')} wrote it, and this is {__version__}, which reads format {_FORMAT}",
            fix="use the version that wrote it",
        )
    if found != step:
        raise _DamagedError(f"state.json is of step {found}")
    try:
        return Checkpoint(step, tensors_of(files["model.safetensors"]), tensors_of(files["state.safetensors"]))
    except (KeyError, ValueError) as error:
        raise _DamagedError("its tensors cannot be understood") from error


def _write(run: Path, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], whole: set[Path]) -> Path:
    """Write a checkpoint and remove old ones. `whole` are folders known to be whole; those found to be are added."""
    folder = run / FOLDER / f"step-{step:08d}"
    files = {
        "model.safetensors": save(_on_cpu(model)),
        "state.safetensors": save(_on_cpu(state)),
        "state.json": (json.dumps({"step": step, "format": _FORMAT, "smalti": __version__}) + "\n").encode(),
    }
    whole.discard(folder)
    write_folder(folder, files)
    whole.add(folder)
    _remove_old(run, folder, whole)
    return folder


def _remove_old(run: Path, newest: Path, whole: set[Path]) -> None:
    """Remove what is older than the checkpoint just written and another one that is whole."""
    kept = 1
    for _, folder in _checkpoints(run):
        if folder == newest:
            continue
        if kept >= _KEPT:
            remove_folder(folder)
            whole.discard(folder)
        elif folder in whole or is_whole(folder):
            whole.add(folder)
            kept += 1


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that training does not change any more."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint, newest first."""
    folder = run / FOLDER
    found = [_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted({(int(match[2]), folder / match[1]) for match in found if match}, reverse=True)
