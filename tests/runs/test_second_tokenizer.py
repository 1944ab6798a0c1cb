"""Two codebooks at once: a second head, which falls away with the first."""

from pathlib import Path

import pytest

import smalti
from smalti.cli import main
from tests.small_runs import CPU, interrupted_before, metrics, newest_checkpoint, pretrain, result, weights

MORE = ["--plan.save-every", "1", "--masks-per-image", "2", "--no-reference", "--accept-tokenizer"]


@pytest.fixture(scope="module")
def second(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("second") / "tokenizer"
    given = ["--data", str(runs / "photos"), "--tokenizer.teacher", str(runs / "beit"), "--out", str(out)]
    assert main(["train-tokenizer", "features", *CPU, *given]) == 0
    return out


def test_both_codebooks_are_predicted_and_a_run_goes_on_bit_for_bit(
    runs: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*MORE, "--second-tokenizer", str(second)]
    assert pretrain(runs / "photos", runs / "tokenizer", tmp_path / "whole", 3, *flags) == 0
    with interrupted_before(2, monkeypatch):
        assert pretrain(runs / "photos", runs / "tokenizer", tmp_path / "run", 3, *flags) == 130
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    for line in metrics(tmp_path / "run"):
        assert line["loss"] == pytest.approx((line["first"] + line["second"]) / 2)
    found = result(tmp_path / "run")
    assert found["loss_nats"] != found["second_loss_nats"]
    assert found["second_unigram_entropy_nats"] > 0
    assert "second tokenizer: held-out images: loss" in capsys.readouterr().err

    network = smalti.load_network(tmp_path / "run", "cpu")
    names = {name for name in network.module.state_dict() if "head" in name}
    assert names == {"head.weight", "head.bias"}
    assert b"second_head.weight" in (newest_checkpoint(tmp_path / "run") / "model.safetensors").read_bytes()
    for verb in (["show", str(tmp_path / "run"), str(runs / "photos"), "--out", str(tmp_path / "page.html")],):
        assert main([*verb, *CPU]) == 0
    more = ["--init-from", str(tmp_path / "run"), "--second-tokenizer", str(second)]
    assert pretrain(runs / "photos", runs / "tokenizer", tmp_path / "again", 1, *MORE, *more) == 0
    assert "the second head is new" in capsys.readouterr().err


def test_what_cannot_be_second_is_refused(
    runs: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(runs / "photos"), runs / "tokenizer", tmp_path / "run", 2]
    for flags in (["--target", "soft-tokens"], ["--rounds", "2"]):
        assert pretrain(*given, *MORE, "--second-tokenizer", str(second), *flags) == 2  # type: ignore[arg-type]
        assert "it is for --target tokens and a single round" in capsys.readouterr().err
    assert pretrain(*given, *MORE, "--second-tokenizer", str(runs / "beit")) == 2  # type: ignore[arg-type]
    assert "is a run of pretrain; a run of train-tokenizer is needed here" in capsys.readouterr().err
