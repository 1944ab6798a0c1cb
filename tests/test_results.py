"""What the pages under docs/results say is what the files beside them hold."""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from smalti.evaluation.reference_curves import references, standing

ROOT = Path(__file__).parents[1]
TOKENIZERS = ROOT / "docs" / "results" / "tokenizers"
pytestmark = pytest.mark.docs


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("study_tokenizers")


def test_the_table_of_tokenizers_is_that_of_its_files(study: ModuleType) -> None:
    page = (TOKENIZERS / "README.md").read_text()
    shown = page.partition("<!-- table:begin -->\n")[2].partition("<!-- table:end -->")[0].strip()
    assert shown == study.table(study.COLUMNS, study.finished(TOKENIZERS))


@pytest.mark.parametrize("name", ["cifar10", "grocery"])
def test_the_table_of_a_study_of_pretraining_is_that_of_its_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    pretraining = import_module(f"study_{name}").STUDY
    results = import_module("results").Results.read(pretraining, pretraining.home)
    page = (pretraining.home / "README.md").read_text()
    assert results.table() in page
    assert page == import_module("printing").with_table(page, results.table())


def test_every_finished_cell_has_its_log(study: ModuleType) -> None:
    for name, cell in study.finished(TOKENIZERS).items():
        log = TOKENIZERS / f"{name}.jsonl"
        assert log.exists() == (cell["steps"] > 0)
        if log.exists():
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            assert 0 < len(lines) <= 100
            assert lines[-1]["step"] <= cell["steps"]


def test_what_the_page_says_of_figures_on_held_out_images_is_so(study: ModuleType) -> None:
    for name, cell in study.finished(TOKENIZERS).items():
        if name.startswith(("vq", "fsq")):
            assert abs(cell["test"]["psnr_db"] - cell["held_out"]["psnr_db"]) < 0.1, name
    finished = study.finished(TOKENIZERS)
    used = {name: round(1024 * cell["test"]["codebook_usage"]) for name, cell in finished.items()}
    assert (used["collapse-no-remedy"], used["photographs-1024"]) == (51, 1019)


def test_the_half_hour_on_cifar10_is_below_the_unigram_entropy_by_what_the_log_says() -> None:
    result = json.loads((ROOT / "docs" / "results" / "pretrain-cifar10" / "result.json").read_text())
    said = (ROOT / "docs" / "log.md").read_text()
    assert result["unigram_entropy_nats"] - result["loss_nats"] > 0.6
    for figure in ("loss_nats", "unigram_entropy_nats", "neighbour_nats"):
        assert f"{result[figure]:.3f}" in said
    for network in result["probes"].values():
        assert f"{100 * network['linear']:.1f}" in said


def test_runs_of_ours_lie_beside_each_other_as_the_page_and_the_docstring_say() -> None:
    of = {reference.name: reference for reference in references()}
    study = of["cifar10-dvae-1024"]
    log = (ROOT / "docs" / "results" / "pretrain-cifar10" / "metrics.jsonl").read_text().splitlines()
    half_hour = {128 * line["step"]: line["loss"] for line in map(json.loads, log)}
    baseline = of["cifar10-dvae-1024-half-hour"].baseline
    both = {seen: (baseline - loss, gain) for seen, loss in half_hour.items() if (gain := study.gain(seen)) is not None}
    found = [standing(*gains, "tokens") for gains in both.values()]
    assert (found.count("as far"), len(found)) == (45, 46)
    page = (ROOT / "docs" / "evaluation.md").read_text()
    assert "at 45 of 46 points" in page
    assert f"loss {half_hour[128_000]:.3f}  " in page
    assert f"reference {baseline - both[128_000][1]:.3f} (as far)" in page
    embedded = of["embedded-dvae-512"]
    easy = zip(embedded.images, embedded.loss, strict=True)
    beside = [(embedded.baseline - loss, gain) for seen, loss in easy if (gain := study.gain(seen)) is not None]
    assert {standing(*gains, "tokens") for gains in beside} == {"ahead"}


def test_what_the_readme_says_that_pretraining_is_worth_is_so() -> None:
    summary = json.loads((ROOT / "docs" / "results" / "cifar10" / "summary.json").read_text())
    scratch = summary["scratch"]["finetune_10pct"]
    timed = json.loads((ROOT / "docs" / "results" / "cifar10" / "equal_time.json").read_text())
    rows = (summary["best"], timed["3600"]["ours"], timed["7200"]["ours"])
    best, hour, two_hours = (f"+{100 * (row['finetune_10pct'] - scratch):.1f}" for row in rows)
    today = f"{hour} after an hour of one core with today's settings, {two_hours} after two"
    assert f"{best} points for BEiT with random masks; {today}" in (ROOT / "README.md").read_text()


def test_what_the_page_on_decoders_says_of_equal_time_is_so() -> None:
    folder = ROOT / "docs" / "results" / "cifar10" / "equal_time"
    page, timed = (ROOT / "docs" / "which-decoder.md").read_text(), json.loads(folder.with_suffix(".json").read_text())
    images = {row: json.loads((folder / f"816-{row}-0.json").read_text())["images"] for row in ("ours", "ours-adamw")}
    seen = {row: f"{count / 1000:.0f} 000 images, three seeds" for row, count in images.items()}
    for what, seconds, row in (
        (f"816 seconds, Muon ({seen['ours']})", "816", "ours"),
        (f"816 seconds, AdamW ({seen['ours-adamw']})", "816", "ours-adamw"),
        ("an hour, Muon (one seed)", "3600", "ours"),
        ("an hour, AdamW (two seeds, one fine-tuned)", "3600", "ours-adamw"),
        ("two hours, Muon (one seed)", "7200", "ours"),
    ):
        figures = (f"{100 * timed[seconds][row][figure]:.1f}" for figure in ("knn", "linear", "finetune_10pct"))
        assert f"| {what} | {' | '.join(figures)} |" in page
    for what, seconds, optimiser in (
        ("AdamW for both, three seeds", "816", "-adamw"),
        ("Muon for both, three seeds", "816", ""),
        ("Muon for both, an hour of one core, one seed", "3600", ""),
    ):
        ours, mae = timed[seconds][f"ours{optimiser}"], timed[seconds][f"mae{optimiser}"]
        ahead = (f"{100 * (ours[figure] - mae[figure]):.1f}" for figure in ("knn", "linear", "finetune_10pct"))
        assert f"| {what} | {' | '.join(ahead)} | " in page
