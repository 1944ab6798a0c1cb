"""The folder of a run: configuration, images it is of, metrics, checkpoints, result, report, unreadable files."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from smalti import __version__
from smalti.core.config import from_json, to_json
from smalti.core.errors import CheckpointError, UsageError
from smalti.core.files import make_folder, remove_leftovers, write_bytes, write_json
from smalti.core.folder_lock import LOCK, only_writer
from smalti.core.log import Log
from smalti.training.checkpoint import FOLDER as CHECKPOINTS

T = TypeVar("T")

_CONFIG, _BAD_FILES, _DATA = "config.json", "bad_files.jsonl", "data.json"
_RESULT, _METRICS, _CLASSES = "result.json", "metrics.jsonl", "classes.json"
_WRITTEN = "|".join(map(re.escape, (_CONFIG, _BAD_FILES, _DATA, _RESULT, _METRICS, _CLASSES)))
"""What only the run itself writes: not the report."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

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
        """Keep the configuration that rebuilds the run."""
        write_json(self.path / _CONFIG, {"smalti": __version__, "config": to_json(config)})

    def write_data(self, data: dict[str, Any]) -> None:
        """Keep what says whether images are the same."""
        write_json(self.path / _DATA, data)

    def read_data(self) -> dict[str, Any] | None:
        """What `write_data` has kept; None before the run began."""
        path = self.path / _DATA
        return json.loads(path.read_bytes()) if path.exists() else None

    def write_classes(self, classes: tuple[str, ...]) -> None:
        """Keep what the outputs of a classifier stand for."""
        write_json(self.path / _CLASSES, list(classes))

    def read_classes(self) -> tuple[str, ...]:
        """What `write_classes` has kept; empty where that is nothing."""
        path = self.path / _CLASSES
        return tuple(json.loads(path.read_bytes())) if path.exists() else ()

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(self.path / _RESULT, result)

    def read_result(self) -> dict[str, Any]:
        """The result of a finished run; empty where it has not finished."""
        path = self.path / _RESULT
        found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return found

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every recorded line."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that are about to be repeated, and a last line that was cut off."""
        if self.metrics.exists():
            lines = self.metrics.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]
            write_bytes(self.metrics, "".join(kept).encode())


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Be the one that writes a run folder, which is created. What runs that were killed left unfinished is removed.

    Raises:
        LockError: another process is; it is named.
        OutputError: the folder cannot be written.
    """
    path = Path(out).expanduser()
    if path.exists() and not path.is_dir():
        yield  # `create` refuses it
        return
    if not path.exists():
        make_folder(path)
    with only_writer(path):
        removed = remove_leftovers(path, _WRITTEN) + remove_leftovers(path / CHECKPOINTS)
        if removed:
            Log().say(f"{path}: removed what a run that was killed left unfinished: {', '.join(removed)}")
        yield


def create(out: str, config: object) -> RunFolder:
    """A fresh run folder that holds the resolved configuration.

    Raises:
        UsageError: the folder already holds something.
        OutputError: it cannot be written.
    """
    path = Path(out).expanduser()
    if path.exists() and (not path.is_dir() or any(entry.name not in (_BAD_FILES, LOCK) for entry in path.iterdir())):
        raise UsageError(
            f"{path} is not empty", cause="a run never overwrites", fix="choose another --out, or --resume it"
        )
    make_folder(path)
    return _with_config(path, config)


def reopen(out: str, config: object) -> RunFolder:
    """The folder of a run that goes on, perhaps with a changed configuration."""
    return _with_config(Path(out).expanduser(), config)


def is_run(out: str) -> bool:
    """Whether a folder holds a run."""
    return (Path(out).expanduser() / _CONFIG).exists()


def holds_run(model: str) -> bool:
    """Whether a folder's config.json is one of ours, and not that of another program."""
    try:
        return "smalti" in json.loads((Path(model).expanduser() / _CONFIG).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def forget_unstarted(out: str) -> None:
    """Take the configuration of a run that failed before its first step away again; the list of bad files stays."""
    path = Path(out).expanduser()
    if is_run(out) and {entry.name for entry in path.iterdir()} <= {_CONFIG, _BAD_FILES, _DATA, _CLASSES}:
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


def _with_config(path: Path, config: object) -> RunFolder:
    folder = RunFolder(path)
    folder.write_config(config)
    return folder


def _read_config(model: str) -> dict[str, Any]:
    path = Path(model).expanduser() / _CONFIG
    try:
        config = json.loads(path.read_bytes())["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause = "no readable config.json there"
        raise CheckpointError(
            f"{model or 'nothing'} is no run folder", cause=cause, fix="give the --out of a run"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is damaged", cause="config is not an object")
    return config
