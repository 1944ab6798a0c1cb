"""Report parts about how runs were made: what differs in their configuration, versions and device, unreadable files."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smalti.core.config import leaves
from smalti.core.errors import SmaltiError
from smalti.core.stored import read_lines, read_object
from smalti.report.page import Section, table
from smalti.runs.finetune import Finetune
from smalti.runs.folder import RunFolder, read_config, read_kind
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.training.bundle import MAX_CONFIG
from smalti.training.checkpoint import FOLDER as CHECKPOINTS
from smalti.training.checkpoint import newest_step

TRAINING_RUNS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Pretrain, TrainTokenizer, Finetune)}
"""The configurations of the verbs that train, by the kind of run that a folder holds."""
_NOT_SETTINGS = ("out", "profile", "log", "log_pictures")
_MAX_FILES = 20


def names_of(runs: Iterable[str]) -> dict[str, str]:
    """What runs are called beside each other: the last part of each path, or all of it where two have the same."""
    last = {run: Path(os.path.abspath(Path(run).expanduser())).name for run in runs}
    shared = Counter(last.values())
    return {run: name if shared[name] == 1 else run for run, name in last.items()}


def differences(configs: Mapping[str, Any]) -> str:
    """A table of the fields that are not the same in all of these runs, a column for each run; empty if all are."""
    fields = {run: {field.name: _shown(field.value) for field in leaves(config)} for run, config in configs.items()}
    names = dict.fromkeys(name for one in fields.values() for name in one if name not in _NOT_SETTINGS)
    every = [[name, *(one.get(name, "–") for one in fields.values())] for name in names]
    rows = [row for row in every if len(set(row[1:])) > 1]
    cells = {(number, column) for number, row in enumerate(rows) for column in _unusual(row)}
    return table(["what differs", *fields], rows, highlight=cells) if rows else ""


def _unusual(row: Sequence[str]) -> list[int]:
    """The cells of a row that differ from the most frequent one; of two runs, those of the second."""
    values = list(row[1:])
    usual = max(values, key=values.count)  # the first of those that are as frequent
    return [column for column, value in enumerate(values, 1) if value != usual]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def provenance(runs: Sequence[str]) -> Section:
    """Versions, device and images of runs, a column for each, and the files that could not be read."""
    columns = {name: _facts(run) for run, name in names_of(runs).items()}
    facts = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[name, *(column.get(name, "–") for column in columns.values())] for name in facts]
    html = table(["made with", *(columns if len(columns) > 1 else ["value"])], rows)
    bad = [(line, run) for run in runs for line in _bad_files(RunFolder(Path(run).expanduser()))]
    if bad:
        listed = [[str(line.get("path", "")), str(line.get("reason", ""))] for line, _ in bad[:_MAX_FILES]]
        more = f", the first {_MAX_FILES}" if len(bad) > _MAX_FILES else ""
        files = "1 file" if len(bad) == 1 else f"{len(bad)} files"
        html += table([f"{files} that could not be read{more}", "because"], listed)
    note = "What is needed to do it again, besides the images." + ("" if bad else " Every file could be read.")
    return Section("How it was made", html, note)


def _facts(run: str) -> dict[str, str]:
    folder = RunFolder(Path(run).expanduser())
    config = read_config(run, TRAINING_RUNS[read_kind(run)])
    step = newest_step(folder.path) or 0
    try:
        written = read_object(folder.path / "config.json", MAX_CONFIG, follow=True)
        data = folder.read_data() or {}
        about = read_object(folder.path / CHECKPOINTS / f"step-{step:08d}" / "state.json") if step else {}
    except (OSError, ValueError, SmaltiError):
        return {"run": "its files cannot be read"}
    facts = {"smalti": written.get("smalti", "–")} | (written.get("environment") or {})
    facts |= {"device": f"{config.device}, {config.precision}"} | (about.get("conditions") or {})
    facts |= {"images": config.data.path, "their digest": data.get("fingerprint", "–")[:16], "seed": config.seed}
    facts |= {"steps": f"{step:,} of {getattr(config, 'planned_steps', config.plan.steps):,}"}
    return {name.replace("world_size", "processes"): str(value) for name, value in facts.items()}


def _bad_files(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        return read_lines(folder.bad_files) if folder.bad_files.exists() else []
    except (OSError, ValueError):
        return []
