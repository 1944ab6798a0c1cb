"""Whole runs of the backbone as the released code has it."""

from pathlib import Path

import pytest

from smalti.cli import main
from tests.small_runs import FEWEST, metrics, pictures, pretrain, result, train_tokenizer, weights

RELEASED = [
    *("--backbone.positions", "shared_relative", "--backbone.pos-init", "uniform"),
    *("--backbone.init-values", "0.1", "--backbone.no-k-bias", "--backbone.init", "trunc2"),
]


def test_a_run_with_checkpointing_ends_in_the_bytes_of_one_without_and_can_be_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, tokenizer = pictures(tmp_path / "photos"), tmp_path / "tokenizer"
    assert train_tokenizer(data, tokenizer, 2) == 0
    runs = {"plain": [], "checkpointed": ["--backbone.grad-checkpointing"]}
    for name, flags in runs.items():
        assert pretrain(data, tokenizer, tmp_path / name, 4, "--accept-tokenizer", *RELEASED, *flags) == 0
    plain, checkpointed = (weights(tmp_path / name)["model.safetensors"] for name in runs)
    assert plain == checkpointed
    assert b"rel_pos_bias.relative_position_bias_table" in plain
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "checkpointed")
    assert result(tmp_path / "plain") == result(tmp_path / "checkpointed")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "plain"), str(data), *FEWEST]) == 0
