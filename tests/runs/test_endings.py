"""What a training run says at its end, and where something it needs is not given."""

import re
from pathlib import Path

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
