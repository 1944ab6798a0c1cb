"""Numbers that go wrong, beside those of tests/training/test_loop.py and tests/runs/test_replay.py."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.cli import main
from smalti.core.contracts import Batch, StepOutput
from smalti.core.errors import NumericError
from smalti.evaluation.pretraining import PretrainingResult, TokenLoss, measure
from smalti.runs import pretrain
from smalti.training.checkpoint import read_checkpoint
from tests.small_runs import metrics, pictures, result, weights
from tests.small_runs import pretrain as run_pretrain
from tests.small_runs import train_tokenizer as run_tokenizer
from tests.training.test_loop import CPU, MeanGrey, batches, same, trainer
from tests.training.test_loop import weights as all_of


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("numbers") / "photos")


@pytest.fixture(scope="module")
def tokenizer(photos: Path) -> Path:
    assert run_tokenizer(photos, photos.parent / "tokenizer", 3) == 0
    return photos.parent / "tokenizer"


class SteepAtOne(MeanGrey):
    """A finite loss whose gradient is infinite at the second step: the root of 0."""

    def forward(self, batch: Batch, step: Tensor) -> StepOutput:
        output = super().forward(batch, step)
        nothing = self.model.get_parameter("2.bias").sum() * 0
        return output._replace(loss_sum=output.loss_sum + (nothing.sqrt() if int(step) == 1 else nothing))


def test_i02_a_finite_loss_with_a_gradient_that_is_not_changes_nothing() -> None:
    made = trainer(objective=SteepAtOne)
    made.train_step(batches()(0), CPU)
    before = all_of(made)
    with pytest.raises(NumericError, match=r"^the gradient is not finite at step 1; loss 0\.\d+; lower"):
        made.train_step(batches()(1), CPU)
    assert same(all_of(made), before)


@pytest.mark.parametrize("rate", ["1e6", "1e30"])
def test_i05_a_learning_rate_far_too_large_harms_no_checkpoint(
    rate: str, photos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stops within 20 steps with advice, or its numbers stay finite, as clipping and normalisation let them."""
    flags = ("--optimiser.lr", rate, "--optimiser.warmup-ratio", "0", "--plan.save-every", "1")
    code = run_pretrain(photos, tokenizer, tmp_path / "run", 20, *flags)
    assert code == 5 or (code == 0 and rate == "1e6")
    if code == 5:
        assert "lower the learning rate or lengthen the warm-up" in capsys.readouterr().err.splitlines()[-1]
    found = read_checkpoint(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in found.model.values())


@pytest.mark.parametrize(("flag", "value"), [("--masking.ratio", "0"), ("--masking.ratio", "1")])
def test_i07_a_mask_that_hides_nothing_or_all_is_refused(
    flag: str, value: str, photos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_pretrain(photos, tokenizer, tmp_path / "run", 1, flag, value) == 2
    assert "ratio of " in capsys.readouterr().err.splitlines()[-1]


def test_i10_a_measurement_that_is_no_number_is_said_and_stops_nothing(
    photos: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_a_number(*arguments: Any, **settings: Any) -> PretrainingResult:
        found = measure(*arguments, **settings)
        assert isinstance(found.loss, TokenLoss)
        assert found.bound is not None
        return PretrainingResult(replace(found.loss, loss_nats=math.nan), replace(found.bound, trained=math.inf))

    assert run_pretrain(photos, tokenizer, tmp_path / "whole", 2) == 0
    monkeypatch.setattr(pretrain, "measure", without_a_number)
    capsys.readouterr()
    assert run_pretrain(photos, tokenizer, tmp_path / "run", 2, "--json") == 0
    printed = capsys.readouterr()
    warning = (
        "warning: not finite on held-out images: loss_nats, bits_saved_per_token, bits_saved_over_neighbour, bound."
    )
    assert [line for line in printed.err.splitlines() if line.startswith(warning)]
    found = result(tmp_path / "run")
    assert json.loads(printed.out.splitlines()[-1]) == found
    assert found["loss_nats"] is found["bound"]["trained_rate_bits_per_dim"] is None
    assert found["accuracy"] == result(tmp_path / "whole")["accuracy"]
    assert (weights(tmp_path / "run"), metrics(tmp_path / "run")) == (
        weights(tmp_path / "whole"),
        metrics(tmp_path / "whole"),
    )
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
