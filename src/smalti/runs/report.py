"""`smalti report`: one offline HTML file about one or more runs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smalti.core.compute import Compute, choose_compute
from smalti.core.config import setting
from smalti.core.errors import UsageError
from smalti.core.files import require_place
from smalti.report.page import Section
from smalti.runs.evaluation_sections import evaluation_sections
from smalti.runs.finetune import Finetune
from smalti.runs.finetune_sections import finetune_comparison, finetune_sections
from smalti.runs.folder import ROUNDS, RunFolder, is_run, read_kind, require_run
from smalti.runs.pretrain import Pretrain
from smalti.runs.sections import (
    comparison_section,
    pretrain_sections,
    probe_section,
    tokenizer_sections,
    write_page,
)
from smalti.runs.train_tokenizer import TrainTokenizer
from smalti.runs.verdicts import together, verdict_of

_SHOWN = {
    Pretrain.__name__: pretrain_sections,
    TrainTokenizer.__name__: tokenizer_sections,
    Finetune.__name__: finetune_sections,
}


@dataclass(frozen=True)
class Report:
    """Which runs to show, and where to write the page."""

    runs: tuple[str, ...]
    """Run folders; of a demo both of its runs are shown."""
    out: str = setting("", "the HTML file to write; empty: report.html in the first run folder")


def main(config: Report) -> dict[str, Any]:
    """Write the page; its pictures show each run's own held-out images."""
    if not config.runs:
        raise UsageError("no runs given", fix="smalti report RUN...")
    target = Path(config.out).expanduser() if config.out else RunFolder(Path(config.runs[0]).expanduser()).report
    require_place(target)
    compute = choose_compute("cpu", "fp32")
    runs = [part for run in config.runs for part in _parts(run)]
    sections = _comparisons(runs)
    for run in config.runs:
        name = Path(run).name if len(config.runs) > 1 else ""
        sections += [replace(section, run=section.run or name) for section in _run_sections(run, compute)]
    facts, text = verdict_of(config.runs[0]) if len(config.runs) == 1 else together(runs)
    names = ", ".join(Path(run).name for run in config.runs)
    write_page(target, names, text, sections, facts)
    print(f"written: {target}")
    return {"report": str(target)}


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
        raise UsageError(f"{run} is a {read_kind(run)} run", cause="a report shows runs of training verbs")
    return inside
