"""Runs with patch aggregation, which is for training: they go on exactly, and its blocks fall away afterwards."""

from pathlib import Path

import pytest

import smalti
from smalti.cli import main
from tests.small_runs import CPU, interrupted_before, metrics, newest_checkpoint, pretrain, result, weights

SHALLOW = ["--patch-aggregation.depth", "2", "--patch-aggregation.layer", "1"]
MORE = ["--plan.save-every", "1", "--no-reference", "--accept-tokenizer", "--backbone.drop-path-rate", "0.2"]


def test_a_run_goes_on_bit_for_bit_and_its_shallow_blocks_fall_away(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = runs / "photos", runs / "tokenizer"
    assert pretrain(*given, tmp_path / "whole", 3, *MORE, *SHALLOW) == 0
    with interrupted_before(2, monkeypatch):
        assert pretrain(*given, tmp_path / "run", 3, *MORE, *SHALLOW) == 130
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    for line in metrics(tmp_path / "run"):
        assert line["loss"] == pytest.approx(line["last"] + line["aggregated"])
    assert result(tmp_path / "run")["loss_nats"] < 1.5 * metrics(tmp_path / "run")[-1]["last"]  # one loss, not two

    network = smalti.load_network(tmp_path / "run", "cpu")
    assert not any(name.startswith("aggregation.") for name in network.module.state_dict())
    assert b"aggregation.blocks.1." in (newest_checkpoint(tmp_path / "run") / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert pretrain(*given, tmp_path / "again", 1, *MORE, *SHALLOW, "--init-from", str(tmp_path / "run")) == 0
    assert "the patch aggregation is new" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), "--layer", "1", "--out", str(tmp_path / "bundle")]) == 0
    assert smalti.load_network(tmp_path / "bundle", "cpu").backbone.config.depth == 1


def test_what_cannot_be_aggregated_is_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = runs / "photos", runs / "tokenizer", tmp_path / "run", 1
    assert pretrain(*given, "--patch-aggregation.depth", "1", "--patch-aggregation.layer", "2") == 2
    assert "patches of block 2 of 2 are to be aggregated; use 1 to 1" in capsys.readouterr().err
    mixed = ["--masking", "random", "--decoder", "cross-attention", "--decoder.mix-layers"]
    assert pretrain(*given, *SHALLOW, *mixed) == 2
    assert "patch aggregation, and a decoder that mixes layers" in capsys.readouterr().err
    assert main(["pretrain", "tiny", *CPU, *SHALLOW, "--out", str(tmp_path / "run"), "--backbone.depth", "1"]) == 2
