"""`smalti report`: one offline HTML file about one or more runs, written again and again while they train."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smalti.core.compute import Compute, choose_compute
from smalti.core.config import setting
from smalti.core.errors import CheckpointError, UsageError
from smalti.core.files import require_place, write_bytes
from smalti.core.folder_lock import is_written
from smalti.core.log import Log
from smalti.report.page import Section
from smalti.runs.evaluation_sections import evaluation_sections
from smalti.runs.finetune import Finetune
from smalti.runs.finetune_sections import finetune_comparison, finetune_sections
from smalti.runs.folder import ROUNDS, RunFolder, is_run, read_kind, require_run, run_of
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.provenance import names_of, provenance
from smalti.runs.sections import comparison_section, pretrain_sections, probe_section, tokenizer_sections, write_page
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.runs.verdicts import together, verdict_of

_SHOWN = {
    Pretrain.__name__: pretrain_sections,
    TrainTokenizer.__name__: tokenizer_sections,
    Finetune.__name__: finetune_sections,
}
_LOOK, _SHARE = 2.0, 10
"""Seconds between two looks at the metrics; a page is written a tenth of the time at most."""
_RELOAD = 10
"""Seconds after which a browser loads the page of a run that goes on again."""


@dataclass(frozen=True)
class Report:
    """Which runs to show, and where to write the page."""

    runs: tuple[str, ...]
    """Run folders; of a demo both of its runs are shown."""
    out: str = setting("", "the HTML file to write; empty: report.html in the first run folder")
    watch: bool = setting(False, "write it again whenever there are new metrics, until the runs have ended or Ctrl-C")


def main(config: Report) -> dict[str, Any]:
    """Write the page; its pictures show each run's own held-out images."""
    if not config.runs:
        raise UsageError("no runs given", fix="smalti report RUN...")
    target = Path(config.out).expanduser() if config.out else RunFolder(Path(config.runs[0]).expanduser()).report
    require_place(target)
    compute = choose_compute("cpu", "fp32")
    if config.watch:
        watch(config.runs, target, lambda reload: _write(config.runs, target, compute, reload))
    else:
        _write(config.runs, target, compute)
    print(f"written: {target}")
    return {"report": str(target)}


def watch(runs: tuple[str, ...], target: Path, write: Callable[[int], None]) -> None:
    """Write a page whenever its runs have new metrics, until they have ended, or Ctrl-C.

    Args:
        target: the page; what reloads it is taken out at the end.
        write: writes it, to be loaded again after so many seconds.
    """
    log, seen, rested = Log(), None, 0.0
    for run in runs:
        require_run(run, fix="see smalti info and smalti evaluate")
        read_kind(run)
    log.say(f"watching {', '.join(runs)}: {target} is written again as they go on; Ctrl-C ends it")
    try:
        while True:
            going = any(is_written(Path(run).expanduser()) for run in runs)
            now = [going, *(_state(run) for run in runs)]
            if now != seen and (time.monotonic() >= rested or not going):
                began = time.monotonic()
                try:
                    write(_RELOAD if going else 0)
                except CheckpointError as error:  # a checkpoint was replaced while it was read, or there is none yet
                    if not going:
                        raise
                    log.say(f"waiting: {error}")
                else:
                    seen = now
                rested = time.monotonic() + _SHARE * (time.monotonic() - began)
            if not going:
                return
            time.sleep(_LOOK)
    except KeyboardInterrupt:
        if target.exists():
            text = target.read_text(encoding="utf-8")
            write_bytes(target, re.sub(r'<meta http-equiv="refresh"[^>]*>\n', "", text, count=1).encode())


def _state(run: str) -> list[tuple[str, int, int]]:
    """What changes when there is more to show: names, times and sizes of metrics and results."""
    path = Path(run).expanduser()
    found = list[tuple[str, int, int]]()
    for file in sorted([*path.glob("**/metrics.jsonl"), *path.glob("**/result.json"), *path.glob("**/checkpoints/*")]):
        with suppress(OSError):  # removed meanwhile
            about = file.stat()
            found.append((str(file), about.st_mtime_ns, about.st_size))
    return found


def _write(given: tuple[str, ...], target: Path, compute: Compute, reload: int = 0) -> None:
    """Write the page about these folders."""
    runs = [part for run in given for part in _parts(run)]
    sections, names = _comparisons(runs), names_of(given)
    for run in given:
        name = names[run] if len(given) > 1 else ""
        sections += [replace(section, run=section.run or name) for section in _run_sections(run, compute)]
    sections.append(provenance(runs))
    facts, text = verdict_of(given[0]) if len(given) == 1 else together(runs)
    write_page(target, ", ".join(names.values()), text, sections, facts, reload)


def _run_sections(run: str, compute: Compute) -> list[Section]:
    """The report sections of one run: what was measured of it, and each of its parts."""
    folder = RunFolder(Path(run).expanduser())
    probes = folder.read_result().get("probe", {}).get("all")
    sections = [*([probe_section(probes)] if probes else []), *evaluation_sections(folder)]
    for part in _parts(run):
        name = f"round {Path(part).name}" if Path(part).parent.name == ROUNDS else ""
        sections += [replace(section, run=name) for section in _SHOWN[read_kind(part)](part, compute)]
    return sections


def _comparisons(runs: list[str]) -> list[Section]:
    """A comparison section for each kind of run that occurs more than once."""
    kinds = {kind: [run for run in runs if read_kind(run) == kind] for kind in _SHOWN}
    return [
        finetune_comparison(several) if kind == Finetune.__name__ else comparison_section(kind, several)
        for kind, several in kinds.items()
        if len(several) > 1
    ]


def _parts(run: str) -> list[str]:
    """The training runs in a folder: the folder itself with its earlier rounds, or both stages of a demo."""
    require_run(run, fix="see smalti info and smalti evaluate")
    if read_kind(run) in _SHOWN:
        earlier = sorted(Path(run).expanduser().glob(f"{ROUNDS}/*"), reverse=True)
        return [run, *(str(path) for path in earlier if is_run(str(path)))]
    inside = [str(Path(run) / stage) for stage in ("pretrain", "tokenizer") if is_run(str(Path(run) / stage))]
    if not inside:
        raise UsageError(f"{run} is {run_of(read_kind(run))}", cause="a report shows runs of training verbs")
    return inside
