"""Whole pretraining runs on each target, what is printed and shown of them, and what does not go together."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from smalti.cli import main
from smalti.core.config import as_kind
from smalti.core.errors import UsageError
from smalti.evaluation.pretraining import PixelLoss, TokenLoss
from smalti.recipes import nano, tiny
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.tokenize import Tokenize
from smalti.training.targets import Pixels, SoftTokens
from tests.report.reading import pictures_in
from tests.small_runs import CPU, FEWEST, PRETRAIN_FLAGS, metrics, pictures, pretrain, result, train_tokenizer, weights

TARGETS = ("tokens", "soft-tokens", "pixels")


@dataclass(frozen=True)
class Runs:
    photos: Path
    tokenizer: Path
    of: dict[str, Path]


def on_pixels(photos: Path, out: Path, steps: int, *flags: str) -> int:
    """Without a tokenizer."""
    given = ["--data", str(photos), "--out", str(out), "--plan.steps", str(steps), "--target", "pixels", *flags]
    return main(["pretrain", "tiny", *PRETRAIN_FLAGS, *given])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Sixty steps of each target."""
    root = tmp_path_factory.mktemp("targets")
    made = Runs(pictures(root / "photos"), root / "tokenizer", {name: root / name for name in TARGETS})
    assert train_tokenizer(made.photos, made.tokenizer, 20) == 0
    for name in TARGETS[:2]:
        assert pretrain(made.photos, made.tokenizer, made.of[name], 60, "--target", name) == 0
    assert on_pixels(made.photos, made.of["pixels"], 60) == 0
    return made


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_learned(runs: Runs, target: str) -> None:
    losses = [line["loss"] for line in metrics(runs.of[target])]
    assert sum(losses[-10:]) / 10 < losses[0] - (0.02 if target == "pixels" else 0.2)


def test_tokens_are_what_is_predicted_where_nothing_is_said(runs: Runs, tmp_path: Path) -> None:
    assert pretrain(runs.photos, runs.tokenizer, tmp_path / "default", 60) == 0
    assert weights(tmp_path / "default") == weights(runs.of["tokens"])
    assert metrics(tmp_path / "default") == metrics(runs.of["tokens"])


def test_equal_images_change_nothing_where_all_masks_are_of_one_size(runs: Runs, tmp_path: Path) -> None:
    for name, flags in (("equal", ("--equal-images",)), ("plain", ())):
        assert pretrain(runs.photos, runs.tokenizer, tmp_path / name, 3, *flags) == 0
    for one, other in zip(metrics(tmp_path / "equal"), metrics(tmp_path / "plain"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def described(found: dict[str, Any]) -> str:
    """The line about the loss in a result."""
    kind = PixelLoss if "pixel_loss" in found else TokenLoss
    return kind(**{field.name: found[field.name] for field in fields(kind) if field.name in found}).describe()


@pytest.mark.parametrize("target", TARGETS[:2])
def test_a_run_on_tokens_says_whether_its_loss_is_normal(runs: Runs, target: str) -> None:
    found = result(runs.of[target])
    assert found["neighbour_nats"] <= found["unigram_entropy_nats"]
    assert found["accuracy"] <= found["top5_accuracy"] <= 1
    assert ("kl_nats" in found) == (target == "soft-tokens")
    line = described(found)
    for key in ("loss_nats", "unigram_entropy_nats", "neighbour_nats", "bits_saved_per_token"):
        assert f"{found[key]:.3f}" in line
    assert f"top-1 {found['accuracy']:.1%} (copying {found['neighbour_accuracy']:.1%})" in line
    assert ("above the posterior's own entropy" in line) == (target == "soft-tokens")


def test_a_run_on_pixels_says_it_in_pixels(runs: Runs) -> None:
    found = result(runs.of["pixels"])
    assert "loss_nats" not in found
    assert described(found) == (
        f"held-out images: loss {found['pixel_loss']:.4f} per masked patch; patches of one colour cost"
        f" {found['flat_pixel_loss']:.4f}, copies of the nearest visible patch {found['neighbour_pixel_loss']:.4f}"
    )
    assert {"loss"} == {key for key in metrics(runs.of["pixels"])[0]} - {"stage", "step", "lr", "grad_norm"}


def test_it_is_said_when_the_run_ends(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(runs.photos, runs.tokenizer, tmp_path / "run", 2) == 0
    assert described(result(tmp_path / "run")) in capsys.readouterr().err.splitlines()[-4:]


def test_pixels_are_learned_without_a_tokenizer_and_without_its_gate(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert on_pixels(runs.photos, tmp_path / "run", 2, "--target.error", "l1", "--target.no-normalise") == 0
    assert "tokenizer" not in capsys.readouterr().err
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("target", TARGETS)
def test_every_run_can_be_shown_measured_and_reported(runs: Runs, target: str, tmp_path: Path) -> None:
    run, page = runs.of[target], tmp_path / "page.html"
    assert main(["show", str(run), str(runs.photos), *CPU, "--count", "3", "--out", str(page)]) == 0
    headings = (
        ["original", "masked", "predicted"] if target == "pixels" else ["original", "masked", "tokenizer", "predicted"]
    )
    assert re.findall(r"<b>(.*?)</b>", page.read_text())[: len(headings)] == headings
    shown = pictures_in(page.read_text())
    assert (shown[len(headings) - 1] != shown[0]).any()
    assert main(["evaluate", str(run), str(runs.photos), *FEWEST]) == 0
    assert main(["report", str(run), "--out", str(page)]) == 0
    text = page.read_text()
    assert ("bits saved a token" in text) == (target != "pixels")
    assert ("copies of the nearest visible patch" in text) == (target == "pixels")
    assert ("Brightness and contrast of each masked patch are not predicted" in text) == (target == "pixels")


def test_runs_on_different_targets_stand_side_by_side(runs: Runs, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", *map(str, runs.of.values()), "--out", str(page)]) == 0
    assert "side by side" in page.read_text()


def of(**fields: Any) -> Pretrain:
    return replace(tiny.pretrain(), **fields)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a token cache serves no SoftTokens: .*; leave --token-cache out, or use"):
        of(token_cache="cache", target=SoftTokens())
    with pytest.raises(UsageError, match="a token cache serves no Pixels"):
        of(token_cache="cache", target=Pixels())
    with pytest.raises(UsageError, match="pixels are predicted without a tokenizer; leave --tokenizer out"):
        of(tokenizer="run", target=Pixels())
    with pytest.raises(UsageError, match="a token cache holds the most likely tokens; use --target tokens"):
        as_kind(of(target=SoftTokens()), Tokenize)
    with pytest.raises(
        UsageError, match="the demo trains a tokenizer and pixels are predicted without one; use smalti"
    ):
        replace(nano.demo(), pretrain=of(target=Pixels()))


def test_a_tokenizer_without_a_posterior_has_no_soft_targets(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*CPU, "--data.side", "16", "--tokenizer.vocab-size", "8", "--tokenizer.stride", "4"]
    tokenizer = tmp_path / "kmeans"
    assert main(["train-tokenizer", "kmeans", *flags, "--data", str(runs.photos), "--out", str(tokenizer)]) == 0
    capsys.readouterr()
    assert pretrain(runs.photos, tokenizer, tmp_path / "run", 2, "--target", "soft-tokens") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"error: soft targets are not to be had from {tokenizer}: a KMeansPatches tokenizer chooses a code and has no"
        " scores; use --target tokens, or a discrete VAE"
    )
    assert not (tmp_path / "run").exists()
