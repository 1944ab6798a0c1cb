"""The run folder: configuration, identity of the images, metrics, checkpoints, result, report, unreadable files.

A run resumes bit for bit if nothing relevant has changed, or is found to be finished.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from smalti import __version__
from smalti.core.config import Field, from_json, leaves, to_json
from smalti.core.errors import CheckpointError, LockError, OutputError, UsageError
from smalti.core.files import (
    copy_folder,
    make_folder,
    open_to_others,
    remove_leftovers,
    sha256,
    write_bytes,
    write_json,
)
from smalti.core.folder_lock import LOCK, holder, only_writer, own_name
from smalti.core.log import Log
from smalti.core.ranks import is_rank0
from smalti.data.datasets.remote import without_secrets
from smalti.training.bundle import read_bundle
from smalti.training.checkpoint import FOLDER as CHECKPOINTS
from smalti.training.checkpoint import has_checkpoint, read_checkpoint

T = TypeVar("T")

_CONFIG, _BAD_FILES, _DATA = "config.json", "bad_files.jsonl", "data.json"
_RESULT, _METRICS, _CLASSES = "result.json", "metrics.jsonl", "classes.json"
_EVALUATIONS = "evaluations"
_WEIGHTS_OF_OTHERS = ("model.safetensors", "pytorch_model.bin")
_MAX_CONFIG = 2**20
"""Bytes of a configuration that are read; those of the largest recipe have 3000."""
_WRITTEN = "|".join(map(re.escape, (_CONFIG, _BAD_FILES, _DATA, _RESULT, _METRICS, _CLASSES)))
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
        self._write(_CONFIG, {"smalti": __version__, "config": _public(to_json(config))})

    def write_data(self, data: dict[str, Any]) -> None:
        """Write the data that identifies the images of the run."""
        self._write(_DATA, data)

    def read_data(self) -> dict[str, Any] | None:
        """The data that `write_data` wrote; None before the run started."""
        return _read_json(self.path / _DATA)

    def write_classes(self, classes: tuple[str, ...]) -> None:
        """Write the class names of a classifier's outputs."""
        self._write(_CLASSES, list(classes))

    def read_classes(self) -> tuple[str, ...]:
        """The class names that `write_classes` wrote; empty if there are none."""
        path = self.path / _CLASSES
        return tuple(json.loads(path.read_bytes())) if path.exists() else ()

    def write_result(self, result: dict[str, Any]) -> None:
        self._write(_RESULT, result)

    def read_result(self) -> dict[str, Any]:
        """The result of a finished run; empty if it has not finished."""
        return _read_json(self.path / _RESULT) or {}

    def write_evaluation(self, data: str, test: str, found: dict[str, Any]) -> Path:
        """Keep what `smalti evaluate` has found in `evaluations/`, in place of what it found there on the same images.

        Args:
            data, test: DATA, after which the file is called, and the separate test images.
            found: without these two; see docs/evaluation.md.

        Returns:
            The file.
        """
        about = {"data": _named_place(data), "test": _named_place(test)}
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", about["data"].rstrip("/").rpartition("/")[2]).strip("-.")[:60] or "data"
        path = self.path / _EVALUATIONS / f"{name}.json"
        if {key: (_readable(path) or about).get(key) for key in about} != about:  # other images of the same name
            path = path.with_name(f"{name}-{sha256(json.dumps(about).encode())[:8]}.json")
        make_folder(path.parent)
        write_json(path, {"smalti": __version__} | about | found)
        return path

    def read_evaluations(self) -> dict[str, dict[str, Any]]:
        """What `write_evaluation` has kept, by the name of its file without `.json`; damaged files are left out."""
        found = {path.stem: _readable(path) for path in sorted((self.path / _EVALUATIONS).glob("*.json"))}
        return {name: value for name, value in found.items() if value is not None}

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def forget_metrics_after(self, step: int) -> None:
        """Remove the lines of steps that will be repeated, and a truncated last line."""
        if self.metrics.exists() and is_rank0():
            lines = self.metrics.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]
            write_bytes(self.metrics, "".join(kept).encode())

    def require_ours(self) -> None:
        """Check, before writing during a run, that the folder still exists and still belongs to this run.

        Raises:
            LockError: the folder now belongs to another run.
            OutputError: the folder was removed.
        """
        if not is_rank0():
            return
        if (self.path / LOCK).exists() and (other := holder(self.path)) != own_name():
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
    if who := open_to_others(path):
        Log().say(f"warning: {who}, so the run can be changed by others")
    with only_writer(path):
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
    return _with_config(path, config)


def reopen(out: str, config: object) -> RunFolder:
    """The folder of a resumed run, whose configuration may have changed."""
    return _with_config(Path(out).expanduser(), config)


def copy_run(run: str, out: str) -> None:
    """Copy a run, completely or not at all, to resume it elsewhere; the original folder is not written to.

    Raises:
        UsageError: the destination exists already.
        OutputError: it cannot be written.
    """
    source, path = Path(run).expanduser(), Path(out).expanduser()
    if path.exists():
        raise UsageError(f"{path} is there already", cause="a run never overwrites", fix="choose another --out")
    copy_folder(source, path, leave=[LOCK])


def is_run(out: str) -> bool:
    """Whether a folder holds a run."""
    return os.path.exists(Path(out).expanduser() / _CONFIG)


def holds_run(model: str) -> bool:
    """Whether the config.json of a folder was written by smalti and not by another program."""
    try:
        return "smalti" in json.loads((Path(model).expanduser() / _CONFIG).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def require_run(run: str, fix: str) -> None:
    """Raise a UsageError where the folder is a bundle, which has weights but nothing of the training."""
    if read_bundle(Path(run).expanduser()) is not None:
        raise UsageError(
            f"{run} is a bundle", cause="it has weights, but no state and no curves of a training", fix=fix
        )


def forget_unstarted(out: str) -> None:
    """Remove the configuration of a run that failed before its first step; the list of unreadable files stays."""
    path = Path(out).expanduser()
    started = {_CONFIG, _BAD_FILES, _DATA, _CLASSES}
    if is_rank0() and is_run(out) and {entry.name for entry in path.iterdir()} <= started:
        (path / _CONFIG).unlink()
        (path / _DATA).unlink(missing_ok=True)
        (path / _CLASSES).unlink(missing_ok=True)
        if not any(path.iterdir()):
            path.rmdir()


def read_kind(model: str) -> str:
    """Which kind of run a folder holds, such as `Pretrain`."""
    return str(_read_config(model)["kind"])


def read_config(model: str, cls: type[T]) -> T:
    """The configuration of a run, which must be of class `cls`."""
    config = _read_config(model)
    if config.get("kind") != cls.__name__:
        raise UsageError(f"{model} is a {config.get('kind')} run", cause=f"a {cls.__name__} run is needed here")
    return from_json(cls, config, where="config")


def _public(value: Any) -> Any:
    """JSON values without the parts of addresses that may be secret."""
    if isinstance(value, dict):
        return {name: _public(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return without_secrets(value) if isinstance(value, str) and re.match(r"[a-z][a-z0-9+.-]*://", value) else value


def _named_place(place: str) -> str:
    """DATA as it is written down: a place here in full, an address without its secrets."""
    path = Path(place).expanduser()
    return str(path.resolve()) if place and path.exists() else str(_public(place))


def _readable(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is none, or it is damaged."""
    try:
        return _read_json(path)
    except CheckpointError:
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no file."""
    try:
        found = json.loads(path.read_bytes()) if path.exists() else None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged", cause="it cannot be understood") from error
    if not isinstance(found, dict | None):
        raise CheckpointError(f"{path} is damaged", cause="it is no object")
    return found


def _with_config(path: Path, config: object) -> RunFolder:
    folder = RunFolder(path)
    folder.write_config(config)
    return folder


def _read_config(model: str) -> dict[str, Any]:
    path = Path(model).expanduser() / _CONFIG
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise CheckpointError(f"{path} is damaged", cause=f"a configuration has at most {_MAX_CONFIG} bytes")
        config = json.loads(path.read_bytes())["config"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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


def require_same_settings(run: str, before: object, now: object, allow_inexact: bool) -> None:
    """Report what differs in the settings of a resumed run.

    The definition of a field says whether it may differ (`core.config.Resume`); whether the images differ is determined
    from the images themselves.

    Raises:
        UsageError: more differs than durations, intervals and paths, and that is not allowed.
    """
    rolls_back = getattr(getattr(before, "plan", None), "rollback", 0) > 0
    free = {"free"} if rolls_back else {"free", "free_without_rollback"}
    differing = changes(before, now)
    if differing:
        Log().say(f"settings that have changed: {', '.join(line for _, line in differing)}")
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


def finished(run: str, before: Any, now: Any) -> dict[str, Any] | None:
    """The result of a finished run; None if steps remain, as when its last checkpoint is damaged.

    Models that are fitted and not trained have 0 steps.

    Raises:
        CheckpointError: all of its checkpoints are damaged.
    """
    path = Path(run).expanduser()
    try:
        result = RunFolder(path).read_result()
    except (OSError, json.JSONDecodeError):
        return None
    if before != now or result.get("steps") not in (0, now.plan.steps) or not has_checkpoint(path):
        return None
    if read_checkpoint(path).step != result["steps"]:
        return None
    with suppress(LockError, OutputError), writing(run):
        pass  # it may have been killed after writing its result, before its lock was released
    Log().say(f"{run}: already complete at step {result['steps']}")
    return result
