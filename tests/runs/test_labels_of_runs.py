"""Fine-tuning on labels as lists have them; and a trained network outlives a measurement that fails."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smalti.cli import main
from smalti.core.errors import DataError
from smalti.runs import pretrain as pretraining
from smalti.runs import train_tokenizer as tokenizing
from smalti.runs.classification_task import Classification
from tests.small_runs import FEWEST, finetune, newest_checkpoint, picture, pretrain, result, train_tokenizer


def listed(folder: Path, header: str, labels: list[str]) -> Path:
    """A list of stripes, across where the number is even; a line for each, with these labels."""
    (folder / "images").mkdir(parents=True)
    for number in range(len(labels)):
        picture(number, number % 2 == 0).save(folder / "images" / f"{number:02d}.png")
    rows = [f"images/{number:02d}.png,{label}" for number, label in enumerate(labels)]
    (folder / "list.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "list.csv"


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_i13_product_ids_are_two_classes(tmp_path: Path) -> None:
    images = listed(tmp_path, "path,label", ["10023", "90210"] * 12)
    assert finetune(images, "", tmp_path / "run", 2) == 0
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["10023", "90210"]
    assert set(result(tmp_path / "run")["test_class_accuracy"]) == {"10023", "90210"}


def test_i14_unknown_values_of_several_labels_are_neither_learned_nor_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    across = ["1", "0"] * 20
    images = listed(tmp_path, "path,across,rare", [f"{a},{'' if n % 4 else n % 8 // 4}" for n, a in enumerate(across)])
    assert finetune(images, "", tmp_path / "one", 2) == 2
    message = last_line(capsys)
    assert f"error: images of {images} have several labels, such as 'across|" in message
    assert "learn each label with --task.multi-label" in message
    flags = ("--task.multi-label", "--optimiser.lr", "5e-3", "--augment.operations", "0", "--task.mixing.mixup", "0.8")
    assert finetune(images, "", tmp_path / "run", 40, *flags) == 0
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["across", "rare"]
    assert "2 columns of 0 and 1 are labels: across, rare" in capsys.readouterr().err
    assert result(tmp_path / "run")["validation_mean_average_precision"] is not None


def test_i14_images_without_a_label_are_pretrained_on_and_not_learned_from(tmp_path: Path) -> None:
    labels = ["a", "b"] * 10 + [""] * 20
    images = listed(tmp_path, "path,label", labels)
    assert finetune(images, "", tmp_path / "run", 2) == 0
    found = result(tmp_path / "run")
    counts = [found[f"{part}_images"] for part in ("train", "validation", "test")]
    assert (sum(counts), found["classes"], set(found["test_class_accuracy"])) == (20, 2, {"a", "b"})
    assert pretrain(images, "", tmp_path / "beit", 2, "--target", "pixels") == 0
    found = result(tmp_path / "beit")
    assert found["train_images"] + found["held_out_images"] == 40
    assert main(["evaluate", str(tmp_path / "run"), str(images), *FEWEST]) == 0


def fails(error: Exception) -> Callable[..., Any]:
    def measure(*_: object, **__: object) -> Any:
        raise error

    return measure


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        (MemoryError(), 12, "out of memory"),
        pytest.param(
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), 12, "out of memory", marks=pytest.mark.slow
        ),
        pytest.param(
            DataError("cannot read a.png", cause="No such file"),
            3,
            "cannot read a.png; No such file",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_i13_a_measurement_that_fails_leaves_the_trained_weights(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    cause: str,
) -> None:
    images, out = listed(tmp_path, "path,label", ["a", "b"] * 12), tmp_path / "run"
    runs = {
        "finetune": (lambda: finetune(images, "", out / "finetune", 2, "--choose", "last"), Classification, "measure"),
        "pretrain": (lambda: pretrain(images, "", out / "pretrain", 2, "--target", "pixels"), pretraining, "measure"),
        "train-tokenizer": (
            lambda: train_tokenizer(images, out / "train-tokenizer", 2),
            tokenizing,
            "evaluate_tokenizer",
        ),
    }
    for verb, (start, where, name) in runs.items():
        run = out / verb
        with monkeypatch.context() as patch:
            patch.setattr(where, name, fails(error))
            assert start() == code
        assert last_line(capsys) == (
            f"error: {run} is trained and saved, and only its measurement failed; {cause}; measure it with: smalti"
            f" evaluate {run} DATA, or again with: smalti {verb} --resume {run}"
        )
        assert newest_checkpoint(run).name == "step-00000002"
        assert not (run / "result.json").exists()
        assert main(["evaluate", str(run), str(images), *FEWEST]) == 0
        assert main([verb, "--resume", str(run)]) == 0
        assert result(run)["steps"] == 2


def test_i13_without_memory_to_validate_a_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, calls = listed(tmp_path, "path,label", ["a", "b"] * 12), []
    measure = Classification.measure

    def first_fails(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return measure(*given)

    monkeypatch.setattr(Classification, "measure", first_fails)
    assert finetune(images, "", tmp_path / "run", 2) == 0
    assert "warning: no validation after step 2: out of memory" in capsys.readouterr().err
    assert result(tmp_path / "run")["chosen_step"] == 2
