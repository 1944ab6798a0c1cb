"""Do the cells of a study, each kept as a file as soon as it has ended."""

import argparse
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from logs import write_log
from results import Results
from study import Cell, DataFiles, Study

from smalti.core.compute import Compute, choose_compute
from smalti.runs.folder import RunFolder


def run(study: Study, about: str | None, arguments: list[str] | None = None) -> Results:
    """Do the cells that are not finished, bringing the page up to date with each; all that is finished then."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{study.name}", dest="images", type=Path)
    parser.add_argument("--tokenizers", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs") / study.name)
    parser.add_argument("--out", type=Path, default=study.home)
    parser.add_argument("--row", action="append")
    parser.add_argument("--cell", action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="bf16", help="auto: the faster here")
    parser.add_argument("--page", action="store_true", help="bring page and summary up to date, and do nothing else")
    given = parser.parse_args(arguments)
    if not given.page:
        if given.images is None or given.tokenizers is None:
            parser.error(f"--{study.name} and --tokenizers are required, or --page")
        torch.set_num_threads(given.threads)
        compute = choose_compute(precision=given.precision)
        places = DataFiles(given.images, given.tokenizers, given.runs)
        for name in given.row or study.rows:
            cells = study.cells(name, places)
            for label in _due(cells, given.cell, given.out / name, given.runs / name):
                target = given.out / name / f"{label}.json"
                _keep(cells[label], compute, target)
                write_log(given.runs / name / label, target.with_suffix(".jsonl"))
                Results.read(study, given.out).write(given.out)
    results = Results.read(study, given.out)
    results.write(given.out)
    return results


def _due(cells: Mapping[str, Cell], wanted: list[str] | None, results: Path, runs: Path) -> list[str]:
    """The cells to do: those without a result, all or the wanted ones.

    Results are kept longer than run folders: a pretraining that they need and whose folder is gone is done again.
    """
    due = [label for label in cells if not (results / f"{label}.json").exists() and (not wanted or label in wanted)]
    needed = bool(due) and "pretrain" in cells and not RunFolder(runs / "pretrain").read_result()
    return ["pretrain", *due] if needed and "pretrain" not in due else due


def _keep(cell: Cell, compute: Compute, target: Path) -> None:
    """Do a cell, and write what it found and what it took."""
    began, used = time.time(), time.process_time()
    result = cell(compute)
    result |= {"seconds": time.time() - began, "processor_seconds": time.process_time() - used}
    result |= {"processor": platform.machine(), "torch": torch.__version__, "compute": compute.describe()}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
