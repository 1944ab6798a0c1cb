"""The half hour on CIFAR-10, for a second: it trains, says what the loss is worth, and leaves log and result."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
from tests.benchmarks import in_process
from tests.small_runs import CPU, pictures

from smalti.cli import main
from smalti.runs import session

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pretrain_cifar10.py"


@pytest.mark.slow
def test_it_leaves_a_result_and_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, count in (("train", 80), ("test", 8)):
        pictures(tmp_path / "images" / part, per_class=count)
    tokenizer = ["--data", str(tmp_path / "images" / "train"), "--out", str(tmp_path / "tokenizer")]
    assert main(["train-tokenizer", "kmeans", *CPU, "--tokenizer.vocab-size", "32", *tokenizer]) == 0
    call = [sys.executable, str(SCRIPT), "--cifar10", str(tmp_path / "images"), "--no-compile", "--no-probes"]
    call += ["--tokenizer", str(tmp_path / "tokenizer"), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(session, "seconds_per_step", partial(session.seconds_per_step, steps=1))
    in_process.run([*call, "--minutes", "0.001"], monkeypatch, capsys)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {"loss_nats", "unigram_entropy_nats", "bits_saved_per_token", "bound", "config"} <= set(result)
    assert result["config"]["data"]["path"] == "cifar10/train"
    assert (tmp_path / "out" / "metrics.jsonl").read_text().count("\n") >= 1
