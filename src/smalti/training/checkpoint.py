"""Checkpoints: weights as safetensors, everything else as JSON, written whole or not at all, verified when read.

A checkpoint takes its name when every byte of it is on the disk, and only then are older ones removed. Two that are
known to be whole always stay.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from smalti import __version__
from smalti.core.config import from_json
from smalti.core.errors import CheckpointError, NumericError, OutputError, SmaltiError, UsageError
from smalti.core.files import REPLACED, is_whole, read_folder, remove_folder, write_folder
from smalti.core.log import Log
from smalti.core.ranks import is_rank0, world_size
from smalti.core.tensors import tensors_of
from smalti.distributed.collectives import broadcast_tensors, copy_into, from_rank0
from smalti.training.run_environment import RunEnvironment

N = TypeVar("N", bound=nn.Module)

FOLDER = "checkpoints"

_NAME = re.compile(rf"(step-(\d{{8}}))({re.escape(REPLACED)})?")
_KEPT = 2
_FORMAT = 1
"""Changes when an older smalti would misread what is written. What has no number is of the first."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `model` are the weights to use, `state` what resuming needs beside them.

    Attributes:
        conditions: under which it was written; None where an older version wrote it.
    """

    step: int
    model: dict[str, Tensor]
    state: dict[str, Tensor]
    conditions: RunEnvironment | None = None


@dataclass(frozen=True)
class Weights:
    """Weights to use that are in no module as they are: many processes may hold a part of each."""

    tensors: Mapping[str, Tensor]

    def state_dict(self) -> Mapping[str, Tensor]:
        """The tensors by name."""
        return self.tensors


def write_checkpoint(
    run: Path, step: int, model: nn.Module | Weights, state: Mapping[str, Tensor], keep: int | None = None
) -> Path:
    """Write `run/checkpoints/step-XXXXXXXX/`; then remove all but this one and the newest that is whole beside it.

    Args:
        run: the run folder.
        step: optimiser steps done.
        model: its parameters and persistent buffers become model.safetensors.
        state: further tensors (optimiser, unaveraged weights), state.safetensors.
        keep: a step whose checkpoint stays too.

    Raises:
        NumericError: a tensor holds what is no number; what was there is still there.
        OutputError: it cannot be written; the same.
    """
    return _write(run, step, model.state_dict(), state, keep, RunEnvironment.now(), set())


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

    def write(
        self, run: Path, step: int, model: nn.Module | Weights, state: Mapping[str, Tensor], keep: int | None = None
    ) -> None:
        """Begin to write a checkpoint, when the one before is done.

        Raises:
            NumericError, OutputError: the one before could not be written.
        """
        self.wait()
        self._before()
        arguments = (run, step, _copied(model.state_dict()), _copied(state), keep, RunEnvironment.now())
        self._thread = Thread(target=self._write, args=arguments, name=f"checkpoint of step {step}")
        self._thread.start()

    def wait(self) -> None:
        """Come back when everything is on the disk.

        Raises:
            NumericError, OutputError: it could not be written.
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

    def _write(
        self,
        run: Path,
        step: int,
        model: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        keep: int | None,
        conditions: RunEnvironment,
    ) -> None:
        try:
            _write(run, step, model, state, keep, conditions, self._whole)
        except BaseException as error:
            self._error = error


def has_checkpoint(run: Path) -> bool:
    """Whether a run has written one; it may be damaged."""
    return bool(_checkpoints(run))


def read_checkpoint(run: Path, until: int | None = None) -> Checkpoint:
    """The newest checkpoint of a run that is whole. One that is passed over is named, with the reason.

    The run may be writing: a checkpoint that has made way for newer ones meanwhile is not damaged, and those are read.

    Args:
        until: the last step that it may be of; None: of any.

    Raises:
        CheckpointError: there is none (damaged ones are named), or the newest is of another format.
    """
    damaged: list[str] = []
    found = _checkpoints(run)
    while found:
        step, folder = found.pop(0)
        if until is not None and step > until:
            continue
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


def read_checkpoint_on_rank0(run: Path, until: int | None = None) -> Checkpoint:
    """What `read_checkpoint` finds on rank 0, on every rank.

    Raises:
        CheckpointError: as of `read_checkpoint`; on every rank.
    """
    if world_size() == 1:
        return read_checkpoint(run, until)
    found, failure = None, None
    if is_rank0():
        try:
            found = read_checkpoint(run, until)
        except CheckpointError as error:
            failure = error
    about = from_rank0(lambda: _about(found, failure))
    if "what" in about:
        raise CheckpointError(about["what"], cause=about["cause"], fix=about["fix"])
    model = broadcast_tensors(None if found is None else found.model)
    state = broadcast_tensors(None if found is None else found.state)
    conditions = None if about["conditions"] is None else RunEnvironment(**about["conditions"])
    return Checkpoint(about["step"], model, state, conditions)


def _about(found: Checkpoint | None, failure: CheckpointError | None) -> dict[str, Any]:
    if failure is not None:
        return {"what": failure.what, "cause": failure.cause, "fix": failure.fix}
    assert found is not None
    return {"step": found.step, "conditions": None if found.conditions is None else asdict(found.conditions)}


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
            copy_into(value, weights[name])


def load_frozen(network: N, weights: dict[str, Tensor], where: str, device: torch.device) -> N:
    """The network with these weights, on the device: for use, and not to be trained.

    Raises:
        CheckpointError: they do not fit; it names `where` they are from.
    """
    load_weights(network, weights, where)
    return network.eval().requires_grad_(False).to(device)


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
        recorded = about.get("conditions")
        conditions = None if recorded is None else from_json(RunEnvironment, recorded, where="conditions")
        model, state = tensors_of(files["model.safetensors"]), tensors_of(files["state.safetensors"])
    except UsageError as error:
        raise _DamagedError("state.json cannot be understood") from error
    except (KeyError, ValueError) as error:
        raise _DamagedError("its tensors cannot be understood") from error
    if name := _not_finite(model, state):
        raise _DamagedError(f"{name} is not finite")
    return Checkpoint(step, model, state, conditions)


def _write(
    run: Path,
    step: int,
    model: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    keep: int | None,
    conditions: RunEnvironment,
    whole: set[Path],
) -> Path:
    """Write a checkpoint and remove old ones. `whole` are folders known to be whole; those found to be are added."""
    folder = run / FOLDER / f"step-{step:08d}"
    if name := _not_finite(model, state):
        raise NumericError(
            f"step {step} is not saved",
            cause=f"{name} is not finite",
            fix="what was saved before it is whole; go on from there with a lower --optimiser.lr and --allow-inexact",
        )
    about = {"step": step, "format": _FORMAT, "smalti": __version__, "conditions": asdict(conditions)}
    files = {
        "model.safetensors": save(_on_cpu(model)),
        "state.safetensors": save(_on_cpu(state)),
        "state.json": (json.dumps(about) + "\n").encode(),
    }
    whole.discard(folder)
    write_folder(folder, files)
    whole.add(folder)
    _remove_old(run, folder, whole, keep)
    return folder


def _not_finite(model: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The name of a tensor that holds NaN or infinity; empty where none does."""
    for name, value in {**model, **state}.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            return name
    return ""


def _remove_old(run: Path, newest: Path, whole: set[Path], keep: int | None) -> None:
    """Remove what is older than the checkpoint just written and another one that is whole, except that of `keep`."""
    kept = 1
    for step, folder in _checkpoints(run):
        if folder == newest or (kept >= _KEPT and step == keep):
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
