"""`smalti evaluate` of fine-tuning runs: the numbers of the run itself on its own test images, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from smalti.cli import main
from tests.small_runs import CPU, finetune, flat_pictures, pictures, result, scenes, segment


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each task, and the images that it was tested on."""
    folder = tmp_path_factory.mktemp("finetuned")
    pictures(folder / "test", per_class=9)
    assert finetune(pictures(folder / "photos"), "", folder / "run", 4, "--test", str(folder / "test")) == 0
    apart = ("--test", str(scenes(folder / "boxes", 5, seed=3)))
    assert segment(scenes(folder / "scenes"), "", folder / "pixels", 4, *apart) == 0
    return folder


def measured(run: Path, images: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main(["evaluate", str(run), str(images), *CPU, "--json", *flags]) == 0
    said = capsys.readouterr().out
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found, said


def of_test(run: Path) -> dict[str, Any]:
    return {name.removeprefix("test_"): value for name, value in result(run).items() if name.startswith("test_")}


@pytest.mark.parametrize(("run", "images"), [("run", "test"), ("pixels", "boxes")])
def test_the_numbers_are_those_of_the_run_on_its_own_test(
    run: str, images: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = measured(root / run, root / images, capsys)
    assert json.dumps(found, sort_keys=True) == json.dumps(of_test(root / run), sort_keys=True)
    score = "accuracy" if run == "run" else "mean_iou"
    assert said.splitlines()[0].startswith(f"{found['images']} images: {score} {found[score]:.4f}, ")
    classes = found["class_accuracy" if run == "run" else "class_iou"]
    assert [line.split() for line in said.splitlines()[1 : 1 + len(classes)]] == [
        [name, f"{share:.1%}"] for name, share in classes.items()
    ]


def test_some_classes_may_be_absent_and_official_test_images_are_found(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root / "photos", tmp_path / "train")
    shutil.copytree(root / "test" / "down", tmp_path / "test" / "down")
    found, said = measured(root / "run", tmp_path, capsys)
    assert found["images"] == 9
    assert found["class_accuracy"]["across"] is None
    assert said.splitlines()[1].split() == ["across", "-"]


def test_other_classes_no_labels_and_a_share_are_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root / "test" / "down", tmp_path / "other" / "sideways")
    flat_pictures(tmp_path / "flat")
    for run, images, code, message in (
        ("run", tmp_path / "other", 3, "cannot be measured on; class sideways is not among those to learn"),
        (
            "run",
            tmp_path / "flat",
            3,
            "cannot be measured on: it has no labels; 8 of 8 images lie in no folder",
        ),
        ("pixels", tmp_path / "flat", 3, f"no folder of images {tmp_path / 'flat' / 'images'}; it does not exist"),
    ):
        assert main(["evaluate", str(root / run), str(images), *CPU]) == code
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert main(["evaluate", str(root / "pixels"), str(root / "boxes"), "--held-out", "0.5", *CPU]) == 2
    message = "held_out: a fine-tuned network is measured on all images; leave it out"
    assert message in capsys.readouterr().err.splitlines()[-1]
