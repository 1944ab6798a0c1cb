"""What `smalti evaluate` has found is kept in the run folder: a file for each data set, in `evaluations/`."""

import json
import re
from pathlib import Path
from typing import Any

from smalti import __version__
from smalti.core.addresses import is_address, without_secrets
from smalti.core.files import make_folder, sha256, write_json
from smalti.core.stored import read_object_if_any

_FOLDER = "evaluations"


def write_evaluation(run: Path, data: str, test: str, found: dict[str, Any]) -> Path:
    """Keep a result, in place of what was found on the same images before.

    Args:
        data: DATA, after which the file is called.
        test: the separate test images.
        found: the result without these two; see docs/evaluation.md.

    Raises:
        OutputError: it cannot be written.
    """
    about = {"data": _named(data), "test": _named(test)}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", about["data"].rstrip("/").rpartition("/")[2]).strip("-.")[:60] or "data"
    path = run / _FOLDER / f"{name}.json"
    if {key: (read_object_if_any(path) or about).get(key) for key in about} != about:  # other images of the same name
        path = path.with_name(f"{name}-{sha256(json.dumps(about).encode())[:8]}.json")
    make_folder(path.parent)
    write_json(path, {"smalti": __version__} | about | found)
    return path


def read_evaluations(run: Path) -> dict[str, dict[str, Any]]:
    """What `write_evaluation` has kept, by the name of its file without `.json`; damaged files are left out."""
    found = {path.stem: read_object_if_any(path) for path in sorted((run / _FOLDER).glob("*.json"))}
    return {name: value for name, value in found.items() if value is not None}


def last_probes(run: Path) -> dict[str, Any] | None:
    """The last of these results that has probes of a backbone: its `data`, `result` and so on; None: there is none."""
    files = [run / _FOLDER / f"{name}.json" for name in read_evaluations(run)]
    found = map(read_object_if_any, sorted(files, key=lambda path: path.stat().st_mtime, reverse=True))
    return next((one for one in found if one is not None and "linear" in (one.get("result") or ())), None)


def _named(place: str) -> str:
    """DATA as it is written down: a place here in full, an address without its secrets."""
    if is_address(place):
        return without_secrets(place)
    path = Path(place).expanduser()
    return str(path.resolve()) if place and path.exists() else place
