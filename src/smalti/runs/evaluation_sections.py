"""Report section of what `smalti evaluate` has kept in a run folder."""

from collections.abc import Mapping
from typing import Any

from smalti.report.page import Section, best_cells, table
from smalti.runs.evaluations import read_evaluations
from smalti.runs.figures import FIGURES, values_table
from smalti.runs.folder import RunFolder
from smalti.runs.sections import layer_charts

_PROBES = {"knn": "k-NN", "linear": "linear probe"}
_TRAINED = "this network"


def evaluation_sections(folder: RunFolder) -> list[Section]:
    """A section for each set of images that was measured."""
    return [_section(name, found) for name, found in read_evaluations(folder.path).items() if found.get("result")]


def _section(name: str, found: Mapping[str, Any]) -> Section:
    result = found["result"]
    html = ""
    if result.get("linear") is not None:
        rows = {_TRAINED: result} | dict(result.get("baselines") or {})
        html = _probes(rows) + layer_charts({name: row for name, row in rows.items() if row.get("validation")})
    html += values_table("on these images", result, FIGURES.get(str(found.get("kind")), {}))
    where = str(found.get("data") or name) + (f", tested on {found['test']}" if found.get("test") else "")
    note = f"As `smalti evaluate` measured it on {where}, after step {found.get('step')} of training."
    if result.get("baselines"):
        note += " The same network untrained and raw pixels were measured in the same way."
    return Section(f"Evaluated on {name}", html, note)


def _probes(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Probes of the frozen network and of its baselines, a row each; the best of each column is bold."""
    budgets = list(rows[_TRAINED].get("few") or {})
    values = [
        [row.get(key) for key in _PROBES] + [((row.get("few") or {}).get(few) or {}).get("accuracy") for few in budgets]
        for row in rows.values()
    ]
    header = ["frozen features", *_PROBES.values(), *(f"{few} labels" for few in budgets), "block"]
    body = [
        [name, *("-" if value is None else f"{value:.1%}" for value in cells), f"{row['layer']} ({row['pooling']})"]
        for (name, row), cells in zip(rows.items(), values, strict=True)
    ]
    return table(header, body, highlight=best_cells((column, True) for column in zip(*values, strict=True)))
