"""Whole runs on images that are not kept in memory."""

import json
from pathlib import Path

import pytest

from smalti.cli import main
from tests.small_runs import flat_pictures, metrics, pictures, pretrain, result, train_tokenizer, weights

STREAM = ["--data.memory", "stream"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("streaming") / "photos")


@pytest.fixture(scope="module")
def tokenizer(photos: Path) -> Path:
    out = photos.parent / "tokenizer"
    assert train_tokenizer(photos, out, 3, *STREAM, "--data.num-workers", "0", "--jitter.contrast", "0.4") == 0
    return out


def test_a_killed_run_goes_on_with_another_number_of_workers(photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    flags = [*STREAM, "--jitter.brightness", "0.4", "--plan.save-every", "2"]
    assert pretrain(photos, tokenizer, tmp_path / "whole", 6, *flags, "--data.num-workers", "0") == 0
    assert pretrain(photos, tokenizer, tmp_path / "parts", 6, *flags, "--data.num-workers", "2") == 0
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    for last in sorted((tmp_path / "parts" / "checkpoints").iterdir())[1:]:
        for file in last.iterdir():
            file.unlink()
        last.rmdir()
    assert main(["pretrain", "--resume", str(tmp_path / "parts"), "--data.num-workers", "1"]) == 0
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_the_progress_line_says_what_the_run_waits_for(
    photos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(photos, tokenizer, tmp_path / "run", 2, *STREAM, "--data.num-workers", "0") == 0
    said = capsys.readouterr().err
    assert "images are streamed; crops are cut from the whole pictures" in said
    assert "data wait " in said
    assert "bound by " in said


@pytest.mark.parametrize("kind", ["half", "imagenet", "auto"])
def test_statistics_are_stored_with_the_model(photos: Path, tokenizer: Path, tmp_path: Path, kind: str) -> None:
    assert pretrain(photos, tokenizer, tmp_path / "run", 1, "--normalisation", kind) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    mean, std = config["backbone"]["mean"], config["backbone"]["std"]
    assert config["normalisation"] is None, "they are not measured again, whatever a resumed run finds"
    if kind == "auto":
        assert len(mean) == len(std) == 3
        assert mean != [0.485, 0.456, 0.406]
        assert all(0.1 < value < 0.9 for value in mean)
    else:
        assert mean == ([0.5] * 3 if kind == "half" else [0.485, 0.456, 0.406])


def test_h12_fewer_images_than_a_batch_has_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = flat_pictures(tmp_path / "photos", 8)
    assert train_tokenizer(photos, tmp_path / "run", 1, "--plan.no-repeat") == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        "error: 6 images to learn from, and a batch has 16; use --plan.batch-size 6 or less, or --plan.repeat"
    )
    assert train_tokenizer(photos, tmp_path / "run", 1, "--plan.no-repeat", "--plan.batch-size", "6") == 0
    assert result(tmp_path / "run")["train_images"] == 6


def test_h13_a_resumed_run_finds_the_images_it_began_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, run = flat_pictures(tmp_path / "photos", 40), tmp_path / "run"
    assert train_tokenizer(photos, run, 2, *STREAM, "--data.num-workers", "0") == 0
    extended = ["train-tokenizer", "--resume", str(run), "--plan.steps", "3"]
    (photos / "00.png").rename(photos / "zz.png")
    assert main(extended) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"error: the images have changed since the run in {run} began; files differ in name or length;"
        " bring them back, or begin a new run"
    )
    (photos / "zz.png").unlink()
    assert main(extended) == 3
    assert "; there were 32 of them, now 31; bring" in capsys.readouterr().err


def test_where_images_are_is_decided_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resident and streamed crops differ, so a run must not change over when it goes on with more memory."""
    monkeypatch.setattr("smalti.data.load.usable_memory", lambda: 1)
    assert train_tokenizer(photos, tmp_path / "run", 2, "--data.num-workers", "0") == 0
    monkeypatch.undo()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["data"]["memory"] == "stream"
