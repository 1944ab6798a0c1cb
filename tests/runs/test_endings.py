"""What a training run says at its end, and where something it needs is not given."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from smalti.cli import main
from tests.small_runs import CPU, finetune, pictures, pretrain, result, train_tokenizer


def ending(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The last three lines that were said."""
    return capsys.readouterr().err.splitlines()[-3:]


def test_every_training_run_ends_with_its_figures_its_weights_and_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, tokenizer, backbone, tuned = (tmp_path / name for name in ("my photos", "tokenizer", "backbone", "tuned"))
    pictures(photos)
    assert train_tokenizer(photos, tokenizer, 2) == 0
    figures, weights, then = ending(capsys)
    assert figures.startswith(f"2 steps: PSNR {result(tokenizer)['psnr_db']:.1f} dB on held-out images, ")
    assert weights == f"weights: {tokenizer}/checkpoints/step-00000002/model.safetensors"
    assert then == f"next: smalti pretrain tiny --data '{photos}' --tokenizer {tokenizer} --out OUT"

    assert pretrain(photos, tokenizer, backbone, 2, "--accept-tokenizer", "--no-reference") == 0
    figures, weights, then = ending(capsys)
    assert figures.startswith(f"held-out images: loss {result(backbone)['loss_nats']:.3f} nats per masked token")
    assert weights == f"weights: {backbone}/checkpoints/step-00000002/model.safetensors"
    assert then.startswith(f"next: smalti evaluate {backbone} LABELLED; smalti finetune RECIPE --data LABELLED --init ")

    assert finetune(photos, backbone, tuned, 2) == 0
    figures, weights, then = ending(capsys)
    assert re.match(r"step 2 of 2: accuracy [\d.]+% on \d+ validation images, ", figures)
    assert weights == f"weights: {tuned}/best/checkpoints/step-00000002/model.safetensors"
    assert then == f"next: smalti evaluate {tuned} LABELLED; smalti report {tuned}"
    assert all(Path(re.sub("^weights: ", "", line)).is_file() for line in (weights,))


def test_without_a_tokenizer_pretrain_says_which_two_ways_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(pictures(tmp_path / "photos"), "", tmp_path / "run", 2) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: no tokenizer given; give --tokenizer RUN, the folder of smalti train-tokenizer; or use --target pixels"
    )
    assert not (tmp_path / "run").exists()
    assert main(["tokenize", str(tmp_path / "photos"), "--out", str(tmp_path / "cache"), *CPU]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: no tokenizer given; give --tokenizer RUN")


def test_a_disk_too_full_for_the_first_checkpoint_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("smalti.core.files.shutil.disk_usage", lambda _: SimpleNamespace(free=20_000))
    assert train_tokenizer(pictures(tmp_path / "photos"), tmp_path / "run", 2) == 6
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: no room for the first checkpoint in {tmp_path / 'run'}; ")
    assert " MB are needed (" in error
    assert error.endswith(", and 0.0 MB are free; free some, or use --out on another disk")
    assert not (tmp_path / "run").exists()


def test_a_flag_of_another_verb_gets_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, hint in (
        (["evaluate", "run", "images", "--neighbours", "3"], "see smalti evaluate --help"),
        (
            ["evaluate", "run", "images", "--near-duplicates", "0.9"],
            "search has it, evaluate has not; see smalti evaluate",
        ),
        (
            ["check", "images", "--plan.steps", "3"],
            "train-tokenizer, tokenize, pretrain and finetune have it, check has not",
        ),
    ):
        assert main(arguments) == 2
        assert hint in capsys.readouterr().err
