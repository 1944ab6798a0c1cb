"""The run folder: configuration, identity of the images, metrics, checkpoints, result, report, unreadable files.

A run resumes bit for bit if nothing relevant has changed, or is found to be finished.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from smalti import __version__
from smalti.core.addresses import is_address, without_secrets
from smalti.core.config import Field, from_json, kind_name, leaves, to_json
from smalti.core.errors import CheckpointError, LockError, OutputError, UsageError
from smalti.core.files import copy_folder, make_folder, open_to_others, remove_leftovers, write_bytes, write_json
from smalti.core.folder_lock import LOCK, holder, process_name, writer_lock
from smalti.core.log import Log
from smalti.core.ranks import is_rank0
from smalti.core.stored import parse_json, read_lines, read_object, read_object_if_any, read_stored
from smalti.core.versions import environment
from smalti.training.bundle import MAX_CONFIG, read_bundle
from smalti.training.checkpoint import FOLDER as CHECKPOINTS
from smalti.training.checkpoint import has_checkpoint, is_checkpoint, read_checkpoint
from smalti.training.tracking import STATE as TRACKED

T = TypeVar("T")

_CONFIG, _BAD_FILES, _DATA = "config.json", "bad_files.jsonl", "data.json"
_RESULT, _METRICS, _CLASSES = "result.json", "metrics.jsonl", "classes.json"
REBUILDING = (_CONFIG, _DATA, _BAD_FILES)
"""What a step that failed is done again with, besides its checkpoint and its batch."""
_DATA_FIELDS = {"images": int, "fingerprint": str}
ROUNDS = "rounds"
"""The folder with the earlier rounds of a pretraining run of several."""
TOKENIZER = "tokenizer_sha256"
"""In data.json, of a run that predicts the tokens of a tokenizer, or of a tokenizer that learns from a teacher."""
_WEIGHTS_OF_OTHERS = ("model.safetensors", "pytorch_model.bin")
_WRITTEN = "|".join(map(re.escape, (_CONFIG, _BAD_FILES, _DATA, _RESULT, _METRICS, _CLASSES, TRACKED)))
"""What only the run itself writes: not the report."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder. In distributed training only rank 0 writes there."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / _METRICS

    @property
    def bad_files(self) -> Path:
        return self.path / _BAD_FILES

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def write_config(self, config: object) -> None:
        """Write the configuration that rebuilds the run, without passwords or signatures in its addresses."""
        about = {"smalti": __version__, "environment": environment()}
        self._write(_CONFIG, about | {"config": _public(to_json(config))})

    def write_data(self, data: dict[str, Any]) -> None:
        """Write the data that identifies the images of the run."""
        self._write(_DATA, data)

    def read_data(self) -> dict[str, Any] | None:
        """The data that `write_data` wrote; None before the run started.

        Raises:
            CheckpointError: it is damaged.
        """
        found = _read_json(self.path / _DATA)
        if (
            found is not None
            and {name: type(value) for name, value in found.items() if name != TOKENIZER} != _DATA_FIELDS
        ):
            raise CheckpointError(f"{self.path / _DATA} is damaged", cause=f"it has not {' and '.join(_DATA_FIELDS)}")
        return found

    def write_classes(self, classes: tuple[str, ...]) -> None:
        """Write the class names of a classifier's outputs."""
        self._write(_CLASSES, list(classes))

    def read_classes(self) -> tuple[str, ...]:
        """The class names that `write_classes` wrote; empty if there are none."""
        path = self.path / _CLASSES
        if not path.exists():
            return ()
        with _damage_errors(path):
            return from_json(tuple[str, ...], parse_json(read_stored(path, follow=True)), where="classes")

    def write_result(self, result: dict[str, Any]) -> None:
        self._write(_RESULT, result)

    def read_result(self) -> dict[str, Any]:
        """The result of a finished run; empty if it has not finished."""
        return _read_json(self.path / _RESULT) or {}

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl that are of a step.

        Raises:
            CheckpointError: it is no ordinary file.
        """
        if not os.path.lexists(self.metrics):
            return []
        with _damage_errors(self.metrics):
            return [line for line in read_lines(self.metrics) if type(line.get("step")) is int]

    def truncate_metrics(self, step: int) -> None:
        """Remove the lines of steps that will be repeated, and a truncated last line."""
        if self.metrics.exists() and is_rank0():
            kept = [line for line in self.read_metrics() if line["step"] <= step]
            write_bytes(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def require_ours(self) -> None:
        """Check, before writing during a run, that the folder still exists and still belongs to this run.

        Raises:
            LockError: the folder now belongs to another run.
            OutputError: the folder was removed.
        """
        if not is_rank0():
            return
        if (self.path / LOCK).exists() and (other := holder(self.path)) != process_name():
            raise LockError(
                f"{self.path} has been taken over", cause=f"by process {other}", fix="two runs need two folders"
            )
        if not (self.path / _CONFIG).exists():
            cause = "a run needs its folder, and its checkpoints are gone with it"
            raise OutputError(f"{self.path} was removed while the run went on", cause=cause, fix="begin it again")

    def _write(self, name: str, value: object) -> None:
        if is_rank0():
            write_json(self.path / name, value)


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Create a run folder and lock it for writing. Unfinished files of killed runs are removed.

    With several ranks, the first one holds the lock.

    Raises:
        LockError: another process, which the message names, holds the lock.
        OutputError: the folder cannot be written.
    """
    path = Path(out).expanduser()
    if not is_rank0():
        yield
        return
    try:
        path.mkdir(parents=True, exist_ok=True)  # taking the lock proves that the folder is writable
    except OSError as error:
        raise OutputError(f"cannot write into {path}", cause=error.strerror or str(error)) from error
    for name in (CHECKPOINTS, "best", "captures"):
        if (path / name).is_symlink():
            cause, fix = "a run writes and removes files there, and follows no link", "move the whole run instead"
            raise OutputError(f"{path / name} is a link", cause=cause, fix=fix)
    if who := open_to_others(path):
        Log().say(f"warning: {who}, so the run can be changed by others")
    with writer_lock(path):
        removed = remove_leftovers(path, _WRITTEN) + remove_leftovers(path / CHECKPOINTS)
        if removed:
            Log().say(f"{path}: removed what a run that was killed left unfinished: {', '.join(removed)}")
        yield


def create(out: str, config: object) -> RunFolder:
    """A new run folder that contains the resolved configuration.

    Raises:
        UsageError: the folder is not empty.
        OutputError: it cannot be written.
    """
    path = Path(out).expanduser()
    if is_rank0():
        if path.is_dir() and any(entry.name not in (_BAD_FILES, LOCK) for entry in path.iterdir()):
            fix = f"go on with --resume {shlex.quote(str(path))}, or choose" if is_run(out) else "choose"
            raise UsageError(f"{path} is not empty", cause="a run never overwrites", fix=f"{fix} another --out")
        make_folder(path)
    folder = RunFolder(path)
    folder.write_config(config)
    return folder


def copy_run(run: str, out: str) -> None:
    """Copy a run, completely or not at all, to resume it elsewhere; the original folder is not written to.

    Raises:
        UsageError: the destination exists already.
        OutputError: it cannot be written.
    """
    source, path = Path(run).expanduser(), Path(out).expanduser()
    if path.exists():
        raise UsageError(f"{path} is there already", cause="a run never overwrites", fix="choose another --out")
    copy_folder(source, path, leave=[LOCK, TRACKED])


def is_run(out: str) -> bool:
    """Whether a folder holds a run; no path is no folder, and not the current one."""
    return bool(out) and os.path.exists(Path(out).expanduser() / _CONFIG)


def holds_run(model: str) -> bool:
    """Whether the config.json of a folder was written by smalti and not by another program; no path is no folder."""
    path = Path(model).expanduser() / _CONFIG
    return bool(model) and "smalti" in (read_object_if_any(path, MAX_CONFIG, follow=True) or {})


def run_of(kind: str) -> str:
    """A run of this kind, as it is called on the command line."""
    return f"a run of {kind_name(kind)}"


def require_model_first(model: str, images: str) -> None:
    """Raise a UsageError where a run is given for the images and none for the model: they are swapped."""
    if holds_run(images) and not holds_run(model):
        raise UsageError(f"{images} is a model, and {model} is none", fix="give the model first, then the images")


def require_run(run: str, fix: str) -> None:
    """Raise a UsageError where the folder is a bundle, which has weights but nothing of the training."""
    if read_bundle(Path(run).expanduser()) is not None:
        raise UsageError(
            f"{run} is a bundle", cause="it has weights, but no state and no curves of a training", fix=fix
        )


def remove_unstarted(out: str) -> None:
    """Remove the configuration of a run that failed before its first step; the list of unreadable files stays."""
    path = Path(out).expanduser()
    started = {_CONFIG, _BAD_FILES, _DATA, _CLASSES}
    if is_rank0():
        with suppress(OSError):
            (path / ROUNDS).rmdir()  # nothing is in it
    if is_rank0() and is_run(out) and {entry.name for entry in path.iterdir()} <= started:
        (path / _CONFIG).unlink()
        (path / _DATA).unlink(missing_ok=True)
        (path / _CLASSES).unlink(missing_ok=True)
        if not any(path.iterdir()):
            path.rmdir()


def run_folder(model: str) -> RunFolder:
    """The folder of a run, also where the model is one of its checkpoints."""
    path = Path(model).expanduser()
    return RunFolder(path.parent.parent if is_checkpoint(path) else path)


def read_kind(model: str) -> str:
    """Which kind of run a folder holds, such as `Pretrain`."""
    return str(_read_config(model)["kind"])


def read_config(model: str, cls: type[T]) -> T:
    """The configuration of a run, which must be of class `cls`."""
    config = _read_config(model)
    if config.get("kind") != cls.__name__:
        raise UsageError(
            f"{model} is {run_of(str(config.get('kind')))}", cause=f"{run_of(cls.__name__)} is needed here"
        )
    return from_json(cls, config, where="config")


def _public(value: Any) -> Any:
    """JSON values without the parts of addresses that may be secret."""
    if isinstance(value, dict):
        return {name: _public(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return without_secrets(value) if isinstance(value, str) and is_address(value) else value


def public_settings(config: object) -> dict[str, str | int | float | bool]:
    """Every field of a configuration by its name, without passwords or signatures in its addresses."""
    values = {field.name: _public(field.value) for field in leaves(config)}
    return {name: value if isinstance(value, str | int | float) else str(value) for name, value in values.items()}


def _read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no file."""
    if not os.path.lexists(path):
        return None
    with _damage_errors(path):
        return read_object(path)


@contextmanager
def _damage_errors(path: Path) -> Iterator[None]:
    """A file of a run that cannot be read is damaged."""
    try:
        yield
    except (OSError, ValueError, UsageError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{path} is damaged", cause=cause) from error


def _read_config(model: str) -> dict[str, Any]:
    path = run_folder(model).path / _CONFIG
    try:
        config = read_object(path, MAX_CONFIG, follow=True)["config"]
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged", cause=str(error)) from error
    except (OSError, KeyError) as error:
        cause, fix = "no readable config.json there", "give the --out of a run"
        foreign = isinstance(error, KeyError | FileNotFoundError)  # else it is damaged, whoever wrote it
        if foreign and any(path.with_name(name).is_file() for name in _WEIGHTS_OF_OTHERS):
            cause, fix = "it holds weights of another program", f"smalti import {model} --out MODEL makes it one"
        raise CheckpointError(f"{model or 'nothing'} is no run folder", cause=cause, fix=fix) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is damaged", cause="config is not an object")
    if "kind" not in config:
        raise CheckpointError(f"{path} is damaged", cause="it does not say of which kind the run is")
    return config


def changes(before: object, now: object) -> list[tuple[Field, str]]:
    """Each field that differs, with text such as `optimiser.lr 0.001 -> 0.002`; the run folder may have moved."""
    configs = [{field.name: field for field in leaves(config)} for config in (before, now)]
    found = []
    for name, field in (configs[0] | configs[1]).items():
        values = [config[name].value if name in config else None for config in configs]
        if name != "out" and values[0] != values[1]:
            shown = (value if name in config else "none" for value, config in zip(values, configs, strict=True))
            found.append((field, f"{name} {' -> '.join(map(str, shown))}"))
    return found


def require_same_settings(run: str, before: object, now: object, allow_inexact: bool, effects: Sequence[str]) -> None:
    """Report what differs in the settings of a resumed run, and what that does (`effects`).

    The definition of a field says whether it may differ (`core.config.Resume`); whether the images differ is determined
    from the images themselves.

    Raises:
        UsageError: more differs than durations, intervals and paths, and that is not allowed.
    """
    rolls_back = getattr(getattr(before, "plan", None), "rollback", 0) > 0
    free = {"free"} if rolls_back else {"free", "free_without_rollback"}
    free |= {"digest"} if TOKENIZER in (RunFolder(Path(run).expanduser()).read_data() or {}) else set()
    differing = changes(before, now)
    if differing:
        Log().say(f"settings that have changed: {', '.join(line for _, line in differing)}")
    if effects:
        Log().say(f"what that does: {'; '.join(effects)}")
    require_exact(run, [line for field, line in differing if field.resume not in free], allow_inexact)


def require_exact(run: str, differing: list[str], allow_inexact: bool) -> None:
    """Stop a run that would not resume bit for bit.

    Raises:
        UsageError: something differs, and that is not allowed.
    """
    if differing and not allow_inexact:
        raise UsageError(
            f"the run in {run} cannot go on bit for bit",
            cause=", ".join(differing),
            fix="go on as it began, or use --allow-inexact",
        )
    if differing:
        Log().say(f"not bit for bit from here on: {', '.join(differing)}")


def finished_result(run: str, before: Any, now: Any) -> dict[str, Any] | None:
    """The result of a finished run; None if steps remain, as when its last checkpoint is damaged.

    Models that are fitted and not trained have 0 steps.

    Raises:
        CheckpointError: all of its checkpoints are damaged.
    """
    path = Path(run).expanduser()
    try:
        result = RunFolder(path).read_result()
    except CheckpointError:
        return None
    if before != now or result.get("steps") not in (0, now.plan.steps) or not has_checkpoint(path):
        return None
    if read_checkpoint(path).step != result["steps"]:
        return None
    with suppress(LockError, OutputError), writing(run):
        pass  # it may have been killed after writing its result, before its lock was released
    Log().say(f"{run}: already complete at step {result['steps']}")
    return result
