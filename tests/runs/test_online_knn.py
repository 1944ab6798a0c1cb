"""`smalti pretrain --online.data`: a curve beside training, which does not notice it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.cli import main
from smalti.core.compute import Compute
from smalti.core.errors import UsageError
from smalti.core.log import Log
from smalti.data.load import Data
from smalti.evaluation.features import extract
from smalti.evaluation.probe import leave_one_out_accuracy
from smalti.models.vit import ViT
from smalti.runs.models import load_model
from smalti.runs.pretrain_config import Online
from smalti.runs.pretraining_checks import OnlineProbe, online_probe
from tests.small_runs import (
    flat_pictures,
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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, labelled ones, a tokenizer, and a run without evaluation."""
    made = tmp_path_factory.mktemp("online")
    photos = pictures(made / "photos")
    pictures(made / "labelled", 12, side=20)
    assert train_tokenizer(photos, made / "tokenizer", 2) == 0
    assert run(made, made / "plain") == 0
    assert run(made, made / "online", *online(made)) == 0
    return made


def run(root: Path, out: Path, *flags: str) -> int:
    return pretrain(root / "photos", root / "tokenizer", out, 5, *FLAGS, *flags)


def online(root: Path) -> list[str]:
    return ["--online.data", str(root / "labelled"), "--online.every", "2"]


def curve(run: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(run) if "knn" in line]


def test_it_is_measured_every_so_many_steps_and_at_the_end(root: Path) -> None:
    assert [(line["stage"], line["step"]) for line in curve(root / "online")] == [
        ("pretrain", step) for step in (2, 4, 5)
    ]
    assert all(0 <= line["knn"] <= 1 for line in curve(root / "online"))


def test_training_does_not_notice(root: Path) -> None:
    assert weights(root / "online") == weights(root / "plain")
    assert [line for line in metrics(root / "online") if "knn" not in line] == metrics(root / "plain")
    assert result(root / "online") == result(root / "plain")


def test_the_figure_is_that_of_the_best_block_of_the_network_as_it_is_saved(root: Path) -> None:
    backbone = load_model(str(root / "online"), CPU).backbone
    images = Data(path=str(root / "labelled"), side=16, held_out=0.2).load(Log()).train
    features = extract(backbone, images, CPU, poolings=["mean"], dtype=torch.float16)
    expected = max(leave_one_out_accuracy(x, images.labels) for x in features.values())
    assert curve(root / "online")[-1]["knn"] == expected


@pytest.mark.parametrize("stop", [3, 4])
def test_an_interrupted_run_goes_on_to_the_same_curve(
    root: Path, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with interrupted_before(stop, monkeypatch):
        assert run(root, tmp_path / "run", *online(root)) == 130
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0
    assert weights(tmp_path / "run") == weights(root / "online")
    assert metrics(tmp_path / "run") == metrics(root / "online")


def test_the_averaged_network_is_measured_where_there_is_one(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path / "run", *online(root), "--ema-decay", "0.9") == 0
    backbone = load_model(str(tmp_path / "run"), CPU).backbone
    images = Data(path=str(root / "labelled"), side=16, held_out=0.2).load(Log()).train
    probe = OnlineProbe(1, backbone.config, images, CPU)
    assert curve(tmp_path / "run")[-1]["knn"] == probe(load_model(str(tmp_path / "run"), CPU))["knn"]


def test_one_figure_is_in_the_progress_line_and_the_report(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, tmp_path / "run", *online(root)) == 0
    last = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("pretrain     5/5"))
    assert f"  knn {curve(tmp_path / 'run')[-1]['knn']:.3f}  " in last
    for name, shown in (("plain", False), ("online", True)):
        page = tmp_path / f"{name}.html"
        assert main(["report", str(root / name), "--out", str(page)]) == 0
        assert ("k-NN, best block" in page.read_text()) == shown


def test_images_without_labels_are_refused_before_training(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = flat_pictures(tmp_path / "flat")
    assert run(root, tmp_path / "run", "--online.data", str(images)) == 3
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: no labels in {images}: --online.data needs some; 8 of 8 images lie in no folder of a class, but in"
        f" {images} itself; put images into one folder a class, or name a column label"
    )


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^online evaluation needs square images, and these are 16x24; leave it out$"):
        online_probe(Online("x"), ViT(img_size=(16, 24), patch_size=4), Data(), CPU, Log())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("every", 0, "online.every is 0; use at least 1"), ("limit", 1, "online.limit is 1; use at least 2")],
)
def test_an_evaluation_that_makes_no_sense(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        Online(**{field: value})
