"""Runs that are logged to a tracker: the same run, and every step there once."""

from pathlib import Path

import pytest

from tests.small_runs import finetune, interrupted_before, metrics, pretrain, train_tokenizer, weights
from tests.training.test_tracking import events

pytest.importorskip("tensorboard")

LOG = ["--log", "tensorboard", "--log-pictures", "2", "--plan.save-every", "2"]


def test_an_interrupted_run_is_logged_as_one_that_was_not_and_learns_the_same(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, whole, parts = runs / "photos", tmp_path / "whole", tmp_path / "parts"
    assert train_tokenizer(photos, tmp_path / "plain", 5, "--plan.save-every", "2") == 0
    assert train_tokenizer(photos, whole, 5, *LOG) == 0
    with interrupted_before(3, monkeypatch):
        assert train_tokenizer(photos, parts, 5, *LOG) == 130
    from smalti.cli import main

    assert main(["train-tokenizer", "--resume", str(parts)]) == 0
    assert weights(whole) == weights(tmp_path / "plain") == weights(parts)
    logged = [(step, tag, value) for step, tag, value in events(whole) if tag != "configuration/text_summary"]
    assert logged == [one for one in events(parts) if one[1] != "configuration/text_summary"]
    assert [(step, value) for step, tag, value in logged if tag == "loss"] == [
        (line["step"], pytest.approx(line["loss"])) for line in metrics(whole)
    ]
    pictures = [(step, value) for step, tag, value in logged if tag == "reconstructions"]
    assert [step for step, _ in pictures] == [2, 4, 5]
    assert len({value.encoded_image_string for _, value in pictures}) == 3, "the tokenizer has changed in between"


def test_predictions_are_seen_and_fine_tuning_has_numbers_alone(runs: Path, tmp_path: Path) -> None:
    photos, tokenizer = runs / "photos", runs / "tokenizer"
    assert pretrain(photos, tokenizer, tmp_path / "beit", 2, "--accept-tokenizer", *LOG) == 0
    assert {tag for _, tag, _ in events(tmp_path / "beit")} > {"loss", "lr", "accuracy", "predictions"}
    assert weights(tmp_path / "beit") == weights(runs / "beit")
    assert finetune(photos, runs / "beit", tmp_path / "classes", 2, *LOG) == 0
    tags = {tag for _, tag, _ in events(tmp_path / "classes")}
    assert "loss" in tags
    assert not tags & {"predictions", "reconstructions"}


def test_a_package_that_is_missing_is_said_before_a_folder_is_made(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    assert train_tokenizer(runs / "photos", tmp_path / "run", 2, "--log", "wandb") == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
