"""What somebody has put in the place of the files of a run: one line with the exit code of its kind, and no waiting."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from smalti.cli import main
from tests.small_runs import finetune, metrics, pictures, pretrain, train_tokenizer

NESTED = "[" * 100_000
HUGE = "9" * 400
TEXTS = [NESTED, HUGE, "null", "5", "[]", "{", "1e999", '{"smalti": 1, "smalti": 2}', '{"a": ' * 100_000, ""]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `photos`, `tokenizer`, `beit` with a decoder, and `classes`."""
    folder = tmp_path_factory.mktemp("runs")
    photos, decoder = pictures(folder / "photos"), ["--decoder", "cross-attention", "--masking", "random"]
    assert train_tokenizer(photos, folder / "tokenizer", 2) == 0
    assert pretrain(photos, folder / "tokenizer", folder / "beit", 2, "--accept-tokenizer", *decoder) == 0
    assert finetune(photos, folder / "beit", folder / "classes", 2) == 0
    return folder


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: shutil.copytree(runs / name, tmp_path / name)


def fails(capsys: pytest.CaptureFixture[str], code: int, *command: str) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert main(list(command)) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "bug" not in lines[0]
    return lines[0]


def resume(run: Path) -> list[str]:
    verb = {"tokenizer": "train-tokenizer", "beit": "pretrain", "classes": "finetune"}[run.name]
    return [verb, "--resume", str(run), "--plan.steps", "3"]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("name", ["config.json", "data.json", "classes.json"])
def test_no_json_of_a_run_is_believed(
    copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    run = copy("classes")
    (run / name).write_text(text if (name, text) != ("classes.json", "[]") else "[5]")
    command = ["info", str(run)] if name != "data.json" else resume(run)
    line = fails(capsys, 4, *command)
    assert str(run) in line
    (run / name).unlink()
    os.mkfifo(run / name)
    fails(capsys, 4, *command)


@pytest.mark.parametrize("data", ['{"fingerprint": "x"}', '{"images": 5}', '{"images": "5", "fingerprint": "x"}'])
def test_data_without_its_fields_is_damaged(
    copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str], data: str
) -> None:
    run = copy("beit")
    (run / "data.json").write_text(data)
    assert "data.json is damaged; it has not images and fingerprint" in fails(capsys, 4, *resume(run))


def test_a_metrics_file_that_a_power_cut_left_is_read(
    copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy("beit")
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "lo\0\0\0')
    assert main(["report", str(run), "--out", str(run / "page.html")]) == 0
    assert main(resume(run)) == 0
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    line = fails(capsys, 4, "report", str(run), "--out", str(run / "page.html"))
    assert line.endswith("metrics.jsonl is damaged; what is there is no ordinary file")


@pytest.mark.parametrize(
    ("name", "part", "field", "value"),
    [
        ("beit", "backbone", "depth", 10**9),
        ("beit", "backbone", "embed_dim", 10**9),
        ("beit", "decoder", "depth", 10**9),
        ("beit", "decoder", "width", 10**8),
        ("beit", "decoder", "mlp_ratio", 1e9),
        ("classes", "backbone", "depth", 10**9),
        ("tokenizer", "tokenizer", "depth", 10**9),
        ("tokenizer", "tokenizer", "width", 10**6),
    ],
)
def test_a_network_is_compared_with_its_weights_before_it_is_built(
    copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, part: str, field: str, value: float
) -> None:
    run = copy(name)
    about = json.loads((run / "config.json").read_text())
    about["config"][part][field] = value
    (run / "config.json").write_text(json.dumps(about))
    line = fails(capsys, 2 if field == "mlp_ratio" else 4, "info", str(run))
    assert field in line


def test_a_result_that_is_none_is_named(copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = copy("classes")
    (run / "result.json").write_text(NESTED)
    assert "result.json is damaged; it is nested too deeply" in fails(capsys, 4, "report", str(run))


@pytest.mark.parametrize("flag", ["--plan.steps", "--plan.batch-size"])
def test_a_plan_that_nobody_can_carry_out_does_not_start(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(
        capsys, 2, "train-tokenizer", "nano", "--data", "embedded", flag, str(10**30), "--out", str(tmp_path / "run")
    )
    assert "use at most 99999999" in line
    assert not (tmp_path / "run").exists()
