"""What a report says of how runs were made."""

from pathlib import Path

from smalti.runs.provenance import differences, provenance
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.training.training_plan import Plan


def test_what_differs_is_named_and_what_is_unusual_is_bold() -> None:
    runs = {
        name: TrainTokenizer(out=name, seed=seed, plan=Plan(steps=5)) for name, seed in (("a", 0), ("b", 0), ("c", 7))
    }
    html = differences(runs)
    assert html.count("<tr>") == 2, "a header and one row: where a run is written does not count"
    assert '<th scope="row">seed</th>' in html
    assert html.count("<strong>") == 1
    assert "<strong>7</strong>" in html
    assert differences({"a": runs["a"], "b": runs["b"]}) == ""


def test_versions_and_files_that_could_not_be_read(runs: Path, tmp_path: Path) -> None:
    run = runs / "tokenizer"
    section = provenance([str(run)])
    assert "Every file could be read" in section.note
    assert all(f'<th scope="row">{name}</th>' in section.html for name in ("torch", "python", "threads", "seed"))
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "bad_files.jsonl").write_text('{"path": "<b>.png", "reason": "it is empty"}\n')
    section = provenance([str(copy)])
    assert "&lt;b&gt;.png" in section.html
    assert "1 files that could not be read" not in section.html
    assert "1 file that could not be read" in section.html
