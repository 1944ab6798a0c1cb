"""Several rounds of pretraining as one run: what it writes, and that it goes on from wherever it was interrupted."""

from pathlib import Path

import pytest

from smalti.cli import main
from smalti.runs.folder import read_config
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.kmeans_features import KMeansFeatures
from tests.small_runs import interrupted_before, metrics, pretrain, result, weights

ROUNDS = ["--rounds", "2", "--plan.save-every", "1", "--no-reference", "--accept-tokenizer"]
STEPS = 5
PARTS = ("", "rounds/1", "rounds/1-tokens")


@pytest.fixture(scope="module")
def whole(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rounds") / "whole"
    assert pretrain(runs / "photos", runs / "tokenizer", out, STEPS, *ROUNDS) == 0
    return out


def test_a_run_of_two_rounds_is_its_last_one_with_those_before_inside(whole: Path, runs: Path) -> None:
    first, last = (read_config(str(run), Pretrain) for run in (whole / "rounds" / "1", whole))
    tokens = read_config(str(whole / "rounds" / "1-tokens"), TrainTokenizer)
    assert (first.plan.steps, last.plan.steps) == (2, 3)
    assert (first.rounds, last.rounds) == (1, 1)
    assert first.tokenizer == str(runs / "tokenizer")
    assert last.tokenizer == tokens.out == f"{whole}/rounds/1-tokens"
    assert isinstance(tokens.tokenizer, KMeansFeatures)
    assert tokens.tokenizer.teacher == first.out
    assert (first.seed, first.crop, first.backbone, first.masking) == (
        last.seed,
        last.crop,
        last.backbone,
        last.masking,
    )
    assert [line["step"] for line in metrics(whole)] == [1, 2, 3]
    assert result(whole)["steps"] == 3


@pytest.mark.parametrize("stop", [1, 2])
def test_it_goes_on_from_the_round_that_was_interrupted(
    stop: int, whole: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with interrupted_before(stop, monkeypatch):
        assert pretrain(runs / "photos", runs / "tokenizer", run, STEPS, *ROUNDS) == 130
    assert (run / "checkpoints").exists() == (stop == 2)
    assert main(["pretrain", "--resume", str(run)]) == 0
    for part in PARTS:
        assert weights(run / part) == weights(whole / part), part
        assert result(run / part) == result(whole / part), part
    assert main(["pretrain", "--resume", str(run)]) == 0


def test_a_first_round_may_predict_pixels(runs: Path, tmp_path: Path) -> None:
    flags = [*ROUNDS, "--target", "pixels"]
    assert pretrain(runs / "photos", "", tmp_path / "run", 2, *flags) == 0
    assert result(tmp_path / "run")["loss_nats"] > 0
    assert result(tmp_path / "run" / "rounds" / "1")["pixel_loss"] > 0


def test_rounds_may_go_on_from_the_weights_of_the_round_before(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert pretrain(runs / "photos", runs / "tokenizer", run, 2, *ROUNDS, "--rounds-go-on") == 0
    assert read_config(str(run), Pretrain).init_from == f"{run}/rounds/1"
    assert f"from {run}/rounds/1: " in capsys.readouterr().err


def test_one_report_shows_all_rounds(whole: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(whole), "--out", str(page)]) == 0
    text = page.read_text()
    assert "round 1-tokens" in text
    assert text.count("Stage two") >= 2


def test_what_cannot_be_in_rounds_is_refused_and_leaves_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert pretrain(runs / "photos", "", run, 4, *ROUNDS) == 2
    assert "no tokenizer given" in capsys.readouterr().err
    assert not run.exists()
    assert pretrain(runs / "photos", runs / "tokenizer", run, 1, *ROUNDS) == 2
    assert "rounds is 2; use 1 to --plan.steps" in capsys.readouterr().err
    assert pretrain(runs / "photos", runs / "tokenizer", run, 4, *ROUNDS, "--token-cache", "cache") == 2
    assert "a token cache holds the tokens of one round" in capsys.readouterr().err
    assert not run.exists()
