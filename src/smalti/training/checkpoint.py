"""Checkpoints: tensors as safetensors, everything else as JSON, written atomically and verified when read.

A checkpoint gets its name after all of it is flushed to the disk, and only then are older ones removed. The newest two
that are known to be whole are kept.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from smalti import __version__
from smalti.core.compute import RunEnvironment
from smalti.core.config import from_json, leaves
from smalti.core.errors import CheckpointError, NumericError, OutputError, SmaltiError, UsageError
from smalti.core.files import REPLACED, remove_folder, write_folder
from smalti.core.log import Log
from smalti.core.ranks import is_rank0, world_size
from smalti.core.stored import is_intact, parse_object, read_folder
from smalti.core.tensors import from_safetensors, to_safetensors
from smalti.distributed.collectives import broadcast_tensors, copy_into, from_rank0
from smalti.training.bundle import read_bundle, read_bundle_weights

N = TypeVar("N", bound=nn.Module)

FOLDER = "checkpoints"

_NAME = re.compile(rf"(step-(\d{{8}}))({re.escape(REPLACED)})?")
_KEEP_CHECKPOINTS = 2
_WIDTHS = ("embed_dim", "width", "code_dim", "code_width")
_FORMAT = 1
"""Version of the format, incremented when older versions of smalti would misread it; a missing number means 1."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `model` has the weights to use, `state` all other tensors that resuming needs.

    Attributes:
        conditions: numbers of threads and processes of the run; None where an older version wrote it.
    """

    step: int
    model: dict[str, Tensor]
    state: dict[str, Tensor]
    conditions: RunEnvironment | None = None


def write_checkpoint(run: Path, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Path:
    """Write `run/checkpoints/step-XXXXXXXX/`; then remove all older ones but the newest that is whole.

    After an error, older checkpoints are still there.

    Args:
        model: parameters and persistent buffers, written to model.safetensors.
        state: other tensors (moments of the optimiser, with an EMA the weights themselves), written to
            state.safetensors.

    Raises:
        NumericError: a tensor has a value that is NaN or infinite.
        OutputError: it cannot be written.
    """
    return _write(run, step, model, state, None, RunEnvironment.now(), set())


class BackgroundWriter:
    """`write_checkpoint` on a background thread: training waits only until the tensors are copied.

    An error is raised by the next call: another write, `wait` or the end of the `with` block.

    Args:
        before: called before each write, in the caller's thread; may raise.
    """

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self._before = before
        self._whole: set[Path] = set()
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def write(
        self, run: Path, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], keep: int | None = None
    ) -> None:
        """Start to write a checkpoint, after the previous one is finished.

        Args:
            keep: a step whose checkpoint is kept as well.

        Raises:
            NumericError, OutputError: the previous one could not be written.
        """
        self.wait()
        self._before()
        tensors, conditions = (_copied(model), _copied(state)), RunEnvironment.now()
        write = partial(_write, run, step, *tensors, keep, conditions, self._whole)
        self._thread = Thread(target=self._try, args=(write,), name=f"checkpoint of step {step}")
        self._thread.start()

    def wait(self) -> None:
        """Wait until everything is on the disk.

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

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BaseException as error:
            self._error = error


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is one checkpoint of a run: RUN/checkpoints/step-00001000."""
    return path.parent.name == FOLDER and _NAME.fullmatch(path.name) is not None and path.is_dir()


def has_checkpoint(run: Path) -> bool:
    """Whether a run has a checkpoint, which may be damaged."""
    return bool(_checkpoints(run))


def newest_step(run: Path) -> int | None:
    """The step of the newest checkpoint, which may be damaged; None where there is none."""
    return next((step for step, _ in _checkpoints(run)), None)


def read_checkpoint(run: Path, until: int | None = None) -> Checkpoint:
    """The newest checkpoint of a run that is whole. A warning names each damaged one, with the reason.

    The run may still be writing: where it removes a checkpoint during the call, the newer ones are read.

    Args:
        run: the run folder; or a bundle or one checkpoint, which have one set of weights.
        until: the greatest step to accept; None for any.

    Raises:
        CheckpointError: there is none (the message names damaged ones), or the newest has another format.
    """
    damaged: list[str] = []
    if (bundle := read_bundle(run)) is not None:
        return Checkpoint(bundle.step, read_bundle_weights(run, bundle), {})
    name = _NAME.fullmatch(run.name)
    found = [(int(name[2]), run)] if name is not None and is_checkpoint(run) else _checkpoints(run)
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
    """The result of `read_checkpoint` on rank 0, broadcast to every rank.

    Raises:
        CheckpointError: on every rank, as in `read_checkpoint`.
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
    """Copy parameters and persistent buffers into a module, after checking that all names and shapes fit."""
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


def require_alike(config: Any, weights: Mapping[str, Tensor], where: str) -> None:
    """Compare the sizes in a part of a configuration with the weights, before a network is built from it.

    Raises:
        CheckpointError: it has more blocks than there are weights, or a width that none of them has.
    """
    sizes = {size for value in weights.values() for size in value.shape}
    for leaf in leaves(config):
        name = leaf.name.rpartition(".")[2]
        if (name.endswith("depth") and (leaf.value or 0) > len(weights)) or (
            name in _WIDTHS and leaf.value not in {None, *sizes}
        ):
            cause = f"its config.json is of a network with {name} {leaf.value}"
            raise CheckpointError(f"the weights of {where} do not fit", cause=cause)


def load_frozen(network: N, weights: dict[str, Tensor], where: str, device: torch.device) -> N:
    """The network with these weights, on the device: for use, and not to be trained.

    Raises:
        CheckpointError: they do not fit; it names `where` they are from.
    """
    load_weights(network, weights, where)
    return network.eval().requires_grad_(False).to(device)


class _DamagedError(Exception):
    """The reason why a checkpoint is not used."""


def _read(step: int, folder: Path) -> Checkpoint:
    try:
        files = read_folder(folder)
    except CheckpointError as error:
        raise _DamagedError(error.cause) from error
    try:
        about = parse_object(files["state.json"])
        found, written = about["step"], about.get("format", 1)
    except (ValueError, KeyError) as error:
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
        model, state = from_safetensors(files["model.safetensors"]), from_safetensors(files["state.safetensors"])
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
    """Write a checkpoint and remove old ones. `whole` are folders known to be whole, and is extended."""
    folder = run / FOLDER / f"step-{step:08d}"
    if name := _not_finite(model, state):
        raise NumericError(
            f"step {step} is not saved",
            cause=f"{name} is not finite",
            fix="what was saved before it is whole; go on from there with a lower --optimiser.lr and --allow-inexact",
        )
    about = {"step": step, "format": _FORMAT, "smalti": __version__, "conditions": asdict(conditions)}
    files = {
        "model.safetensors": to_safetensors(model),
        "state.safetensors": to_safetensors(state),
        "state.json": (json.dumps(about) + "\n").encode(),
    }
    whole.discard(folder)
    write_folder(folder, files)
    whole.add(folder)
    _remove_old(run, folder, whole, keep)
    return folder


def _not_finite(model: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The name of a tensor with a value that is NaN or infinite; empty where all are finite."""
    for name, value in {**model, **state}.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            return name
    return ""


def _remove_old(run: Path, newest: Path, whole: set[Path], keep: int | None) -> None:
    """Remove all checkpoints but the one just written, the newest other one that is whole, and that of step `keep`."""
    kept = 1
    for step, folder in _checkpoints(run):
        if folder == newest or (kept >= _KEEP_CHECKPOINTS and step == keep):
            continue
        if kept >= _KEEP_CHECKPOINTS:
            remove_folder(folder)
            whole.discard(folder)
        elif folder in whole or is_intact(folder):
            whole.add(folder)
            kept += 1


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors, which training does not change."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint, newest first."""
    folder = run / FOLDER
    found = [_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted({(int(match[2]), folder / match[1]) for match in found if match}, reverse=True)
