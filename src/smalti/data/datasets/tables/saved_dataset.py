"""The folders that `save_to_disk` of Hugging Face `datasets` writes: which files belong to them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.core.errors import DataError
from smalti.data.datasets.tables.table_splits import choose_split

_DICT, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_MAX_JSON = 64 << 20


@dataclass(frozen=True)
class ArrowFiles:
    """The files of one split: tables, and tables of row numbers where the data set is a selection of their rows."""

    data: list[Path]
    indices: list[Path]
    notes: tuple[str, ...] = ()


def is_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` has written this folder."""
    return (folder / _DICT).is_file() or ((folder / _STATE).is_file() and (folder / _INFO).is_file())


def arrow_files(folder: Path) -> ArrowFiles:
    """What belongs to a data set; of several splits, the one to train on.

    Raises:
        DataError: a description that cannot be read, or no split that is clearly meant.
    """
    if (folder / _DICT).is_file():
        splits = _read_json(folder / _DICT).get("splits")
        names = [name for name in splits if _is_name(name)] if isinstance(splits, list) else []
        split, notes = choose_split({name: str(folder / name) for name in names}, str(folder))
        found = arrow_files(folder / split)
        return ArrowFiles(found.data, found.indices, notes)
    state = _read_json(folder / _STATE)
    data = _named(folder, state.get("_data_files"))
    if not data:
        raise DataError(f"cannot read {folder / _STATE}", cause="it names no files", fix="save the data set again")
    return ArrowFiles(data, _named(folder, state.get("_indices_data_files") or state.get("_indices_files")))


def _named(folder: Path, entries: Any) -> list[Path]:
    """Files that a description names; they lie in its folder, wherever else it says."""
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries or ()]
    if not all(_is_name(name) for name in names):
        raise DataError(f"cannot read {folder / _STATE}", cause="a file it names is none of its folder")
    return [folder / str(name) for name in names]


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(_MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}", cause=f"no JSON: {error}", fix="save the data set again") from error
    if not isinstance(found, dict):
        raise DataError(f"cannot read {path}", cause="no JSON object", fix="save the data set again")
    return found
