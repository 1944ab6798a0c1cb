"""Data that grows: more images and classes, and a run that goes on from the one before. Trainings take seconds."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from smalti.cli import main
from smalti.data.datasets.folder import Folder
from smalti.data.load import TrainingData
from smalti.runs.finetune import describe_growth
from smalti.runs.folder import RunFolder
from smalti.runs.model_selection import known_first
from smalti.weights.source import SourceWeights
from tests.small_runs import finetune, newest_checkpoint, picture, pretrain

STILL = ("--optimiser.lr", "1e-7", "--optimiser.end-lr", "1e-7")


def model_of(run: Path) -> dict[str, Tensor]:
    return load_file(newest_checkpoint(run) / "model.safetensors")


@pytest.fixture(scope="module")
def grown(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the small runs (across, down), more of them, and a class that comes first in the alphabet."""
    place = tmp_path_factory.mktemp("grown") / "photos"
    shutil.copytree(runs / "photos", place)
    (place / "aslant").mkdir()
    for number in range(12):
        picture(100 + number, across=True).rotate(45).save(place / "aslant" / f"{number}.png")
        picture(200 + number, across=False).save(place / "down" / f"new-{number}.png")
    return place


def test_classes_keep_their_numbers_and_rows_of_the_head(
    runs: Path, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert finetune(grown, runs / "classes", run, 1, *STILL) == 0
    line = f"the 2 classes of {runs / 'classes'} keep their numbers and rows of the head; new: aslant"
    assert line in capsys.readouterr().err
    assert RunFolder(run).read_classes() == ("across", "down", "aslant")
    there, here = load_file(next((runs / "classes" / "best").rglob("model.safetensors"))), model_of(run)
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(here[name][:2], there[name], rtol=0, atol=1e-5)
        assert len(here[name]) == 3
    assert main(["evaluate", str(run), str(grown), "--device", "cpu"]) == 0
    assert main(["finetune", "--resume", str(run), "--plan.steps", "2", "--allow-inexact"]) == 0
    assert RunFolder(run).read_classes() == ("across", "down", "aslant")


def test_a_run_is_not_resumed_with_more_images_and_says_how_to_go_on(
    runs: Path, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "classes", tmp_path / "classes")
    words = ["finetune", "--resume", str(tmp_path / "classes"), "--data", str(grown), "--plan.steps", "4"]
    assert main([*words, "--allow-inexact"]) == 3
    assert f"begin a new run with --init {tmp_path / 'classes'}" in capsys.readouterr().err


def test_pretraining_goes_on_with_more_images(
    runs: Path, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--accept-tokenizer", "--init-from", str(runs / "beit"), *STILL)
    assert pretrain(grown, runs / "tokenizer", tmp_path / "run", 1, *flags) == 0
    assert "30 tensors of the backbone, the mask token and the head" in capsys.readouterr().err
    there, here = model_of(runs / "beit"), model_of(tmp_path / "run")
    assert all(torch.allclose(here[name], value, rtol=0, atol=1e-5) for name, value in there.items())


def test_what_becomes_of_other_classes_is_said() -> None:
    assert describe_growth("R", (), ("a", "b")) == ""
    assert describe_growth("R", ("a", "b"), ("a", "b")) == ""
    assert describe_growth("R", ("x", "y"), ("a", "b")) == ""
    lacking = "1 of the 2 classes of R are not in these images, first 'x'"
    assert describe_growth("R", ("a", "x"), ("a", "b")) == f"{lacking}: the head and the numbers of classes are new"
    assert describe_growth("R", ("b",), ("a", "b", "c", "d", "e")).endswith("new: a, c, d and 1 more")


def test_rows_are_kept_by_name() -> None:
    own = {"head.weight": torch.zeros(3, 4), "head.bias": torch.zeros(3)}
    source = SourceWeights("R", {"head.weight": torch.ones(2, 4), "head.bias": torch.tensor([1.0, 2.0])})
    found = source.grown(own, ("b", "c"), ("a", "b", "c")).weights
    assert found["head.bias"].tolist() == [0, 1, 2]
    assert found["head.weight"].sum(1).tolist() == [0, 4, 4]
    assert own["head.bias"].sum() == 0


def test_streamed_images_have_the_known_classes_first(grown: Path) -> None:
    source = Folder(grown, 3)
    given = known_first(TrainingData(source, source.select(np.arange(2))), ("across", "down"))
    assert given.train.classes == given.held_out.classes == ("across", "down", "aslant")
    before = [source.classes[label] for label in source.all_labels().tolist()]
    assert [given.train.classes[label] for label in given.train.all_labels().tolist()] == before
    same = TrainingData(source, source)
    assert known_first(same, ("x",)) is same
    assert known_first(same, ()) is same
