"""`smalti pretrain` says where a run lies beside the nearest of ours, and does not notice it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smalti.cli import main
from smalti.core.compute import Compute
from smalti.core.log import Log
from smalti.data.load import Data
from smalti.evaluation.reference_curves import FLAT_PATCH, Reference, Setup
from smalti.functional.masking import Blockwise, Random
from smalti.models.decoder import CrossAttention
from smalti.models.vit import ViT
from smalti.runs import pretraining_checks as beside
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.pretraining_checks import ReferenceComparison, setup_of
from smalti.runs.tokenizers import load_tokenizer
from smalti.training.optim import Optimiser
from smalti.training.targets import Pixels, SoftTokens
from smalti.training.training_plan import Plan
from tests.oracles import distribution_entropy
from tests.small_runs import (
    PRETRAIN_FLAGS,
    interrupted_before,
    metrics,
    pictures,
    pretrain,
    result,
    train_tokenizer,
    weights,
)

CPU = Compute(torch.device("cpu"), torch.float32)
FLAGS = ["--accept-tokenizer", "--plan.save-every", "2"]
TINY = Setup("tokens", 16, 16, 6, 16, 2, 80, "blocks")
"""The setup of the runs of this file: five steps of 16 images."""
OURS = Reference("ours", "5 pictures", TINY, 2.0, 1.5, (32, 64), (1.8, 1.6))
PIXELS = Reference(
    "flat", "3 pictures", replace(TINY, target="pixels", vocab_size=None), 1.0, 0.5, (16, 64), (0.9, 0.4)
)


@pytest.fixture(scope="module", autouse=True)
def made_up() -> object:
    """Two curves in the place of those that come with the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beside, "references", lambda: [OURS, PIXELS])
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a tokenizer, and a run that is compared with nothing."""
    made = tmp_path_factory.mktemp("beside")
    pictures(made / "photos")
    assert train_tokenizer(made / "photos", made / "tokenizer", 2) == 0
    assert run(made, made / "alone", "--no-reference") == 0
    assert run(made, made / "compared") == 0
    return made


def run(root: Path, out: Path, *flags: str) -> int:
    return pretrain(root / "photos", root / "tokenizer", out, 5, *FLAGS, *flags)


def unigram_entropy(root: Path) -> float:
    """Of the tokens of the training images, whole."""
    train = Data(path=str(root / "photos"), side=16, held_out=0.2).load(Log()).train
    ids = load_tokenizer(str(root / "tokenizer"), CPU).encode(train.images).flatten().tolist()
    return distribution_entropy([ids.count(code) / len(ids) for code in set(ids)])


def test_training_does_not_notice(root: Path) -> None:
    assert weights(root / "compared") == weights(root / "alone")
    assert metrics(root / "compared") == metrics(root / "alone")
    assert result(root / "compared") == result(root / "alone")


def test_the_progress_line_has_the_reference_at_as_many_images(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("smalti.core.log._PLAIN_EVERY", 0.0)
    assert run(root, tmp_path / "run") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pretrain  ")]
    own = unigram_entropy(root)
    found = [re.search(r"  (beyond the reference|reference \S+ \(.+?\))  ", line) for line in said]
    assert [match and match[1].split(" (")[0] for match in found] == [
        None,  # 16 images, and the curve begins at 32
        f"reference {own - 0.2:.3f}",
        f"reference {own - 2 + 1.6829:.3f}",  # between 1.8 and 1.6, at ln(48 / 32) / ln 2 of the way
        f"reference {own - 0.4:.3f}",
        "beyond the reference",
    ]


def test_which_run_it_is_and_how_both_end_is_said(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, tmp_path / "run", "--backbone.embed-dim", "32") == 0
    said, found = capsys.readouterr().err.splitlines(), result(tmp_path / "run")
    assert (
        f"reference: ours, a run of ours on 5 pictures, moved to the unigram entropy here, {unigram_entropy(root):.3f}"
        " nats; here (and there): 32 wide (16)"
    ) in said
    assert said[-3] == (
        "reference ours ended 0.500 nats below the unigram entropy on its held-out images, after 80 images; here it is"
        f" {found['unigram_entropy_nats'] - found['loss_nats']:.3f} after 80"
    )


def test_nothing_is_said_where_that_is_not_wanted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, tmp_path / "run", "--no-reference") == 0
    assert "reference" not in capsys.readouterr().err


def test_a_run_that_goes_on_is_compared_as_before_and_may_change_its_mind(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with interrupted_before(3, monkeypatch):
        assert run(root, tmp_path / "run") == 130
    monkeypatch.setattr("smalti.core.log._PLAIN_EVERY", 0.0)
    capsys.readouterr()
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0
    assert f"  reference {unigram_entropy(root) - 0.4:.3f} (" in capsys.readouterr().err
    assert weights(tmp_path / "run") == weights(root / "alone")
    with interrupted_before(3, monkeypatch):
        assert run(root, tmp_path / "other") == 130
    assert main(["pretrain", "--resume", str(tmp_path / "other"), "--no-reference"]) == 0
    assert weights(tmp_path / "other") == weights(root / "alone")


def test_soft_targets_are_compared_by_their_loss_against_hard_tokens() -> None:
    here = ReferenceComparison(OURS, TINY, 3.0, 16)
    assert here(2, {"loss": 9.0, "hard": 2.8}) == "reference 2.800 (as far)"
    assert here(2, {"loss": 2.6}) == "reference 2.800 (ahead)"
    assert here(2, {"loss": 3.0}) == "reference 2.800 (behind)"
    grey = ReferenceComparison(OURS, replace(TINY, channels=1), 3.0, 16)
    assert grey(2, {"loss": 3.0}) == "reference 2.800"
    assert grey.describe().endswith("1 channels (3); too far apart to be ahead or behind")


def test_pixels_are_compared_with_pixels(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", str(root / "photos"), "--plan.steps", "4", "--target", "pixels"]
    assert main(["pretrain", "tiny", *PRETRAIN_FLAGS, *given, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err.splitlines()
    assert "reference: flat, a run of ours on 3 pictures; here (and there): 64 images seen at the end (80)" in said
    assert any("  reference 0.400 (behind)  " in line for line in said)
    assert said[-3] == (
        "reference flat ended at a loss of 0.500 on its held-out images, after 80 images; here it is"
        f" {result(tmp_path / 'run')['pixel_loss']:.3f} after 64"
    )
    other = [*given, "--target.error", "l1", "--out", str(tmp_path / "l1")]
    assert main(["pretrain", "tiny", *PRETRAIN_FLAGS, *other]) == 0
    assert "reference" not in capsys.readouterr().err


def test_the_setup_of_a_run_is_that_of_its_parts() -> None:
    vit, plan = ViT(img_size=(32, 16), patch_size=4, embed_dim=24, depth=3, num_heads=2), Plan(steps=10, batch_size=6)
    run = Pretrain(backbone=vit, plan=plan, masking=Blockwise(ratio=0.25))
    assert setup_of(run, 99) == Setup("tokens", 99, 32, 8, 24, 3, 60, "blocks")
    assert setup_of(replace(run, target=SoftTokens()), 99) == setup_of(run, 99)
    pixels = replace(run, target=Pixels())
    assert setup_of(pixels, None) == Setup("pixels", None, 32, 8, 24, 3, 60, "blocks")
    random = setup_of(replace(pixels, masking=Random(ratio=0.25)), None)
    assert random == Setup("pixels", None, 32, 8, 24, 3, 60, "random")
    seeing = replace(run, decoder=CrossAttention())
    visible = setup_of(seeing, 99)
    assert visible == Setup("tokens", 99, 32, 8, 24, 3, 60, "blocks", "cross-attention")
    muon = replace(seeing, optimiser=Optimiser(matrices="muon"))
    assert setup_of(muon, 99) == replace(visible, optimiser="muon")
    assert setup_of(replace(run, target=Pixels(normalise=False)), None) is None
    assert FLAT_PATCH == 1


def test_the_report_draws_the_reference_at_the_steps_that_it_knows(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(root / "compared"), "--out", str(page)]) == 0
    text, level = page.read_text(), result(root / "compared")["unigram_entropy_nats"]
    assert f"</i>reference ours <b>{level - 0.4:.4g}</b>" in text
    assert (
        f"The other curve is that of ours, a run of ours on 5 pictures, moved to the unigram entropy here, {level:.3f}"
        in text
    )
    assert main(["report", str(root / "alone"), "--out", str(page)]) == 0
    assert "reference ours" not in page.read_text()
