"""`smalti finetune --task segmentation`: splits, heads, what is chosen on, and every error in one line."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from smalti.cli import main
from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.core.errors import DataError, UsageError
from smalti.core.log import Log
from smalti.data.label_maps import SegmentationDataset
from smalti.data.load import Data
from smalti.evaluation import supervised
from smalti.models.segmenter import Segmenter
from smalti.runs import segmentation_task as segmentation
from smalti.runs.model_selection import Shares
from smalti.runs.models import load_finetuned
from smalti.runs.segmentation_task import Segmentation
from smalti.training.trainer import Trainer
from tests.small_runs import CPU, finetune, metrics, newest_checkpoint, pretrain, result, scenes, segment

COMPUTE = Compute(torch.device("cpu"), torch.float32)
TASK, LOG = Segmentation(void=11), Log()
SHARES = Shares(validation=0.25, labels=1.0, per_class=None, seed=0)
STILL = ("--optimiser.lr", "1e-30", "--optimiser.end-lr", "0", "--optimiser.weight-decay", "0")
FAST = ("--optimiser.lr", "5e-3", "--optimiser.layer-decay", "1.0", "--crop.scale", "0.5", "1.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train, val and test of boxes."""
    root = tmp_path_factory.mktemp("segmentation")
    for seed, (name, count) in enumerate({"train": 24, "val": 5, "test": 6}.items()):
        scenes(root / name, count, seed)
    return root


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Path:
    """A pretraining run on pixels of the training images, without their masks."""
    out = folder / "backbone"
    assert pretrain(folder / "train" / "images", "", out, 3, "--target", "pixels") == 0
    return out


def apart(folder: Path) -> tuple[str, ...]:
    return ("--validation-data", str(folder / "val"), "--test", str(folder / "test"))


def names_of(scenes_: Any) -> list[str]:
    return [scenes_.name(index) for index in range(len(scenes_))]


@pytest.mark.parametrize("head", ["linear", pytest.param("multi-level", marks=pytest.mark.slow)])
def test_boxes_are_found_and_the_page_shows_them(folder: Path, tmp_path: Path, head: str) -> None:
    run = tmp_path / "run"
    flags = (*FAST, "--plan.save-every", "30", *apart(folder))
    flags += ("--task.head.width", "16") if head == "multi-level" else ()
    assert segment_with(head, folder / "train", "", run, 60, *flags) == 0
    found = result(run)
    assert found["test_mean_iou"] > 0.4
    assert found["test_pixel_accuracy"] > 0.75
    assert found["test_class_iou"].keys() == {"0", "1", "2"}
    assert found["test_mean_iou"] == pytest.approx(sum(found["test_class_iou"].values()) / 3)
    assert [found[f"{part}_images"] for part in ("train", "validation", "test")] == [24, 5, 6]
    assert found["classes"] == 3
    page = (run / "segmentation.html").read_text()
    assert page.count("data:image/png") == 3 * 6 + 2, "and a colour for each class but the background"
    assert not re.findall(r"https?://|<script|(?:src|href)=[\"'](?!data:|#)", page)
    assert all(name in page for name in ("00.png", "05.png", "truth", "predicted"))
    model = load_finetuned(str(run), COMPUTE)
    assert isinstance(model, Segmenter)
    assert model(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def segment_with(head: str, data: Path, init: Path | str, out: Path, steps: int, *flags: str) -> int:
    """`segment` with a head of a kind."""
    kind = ("--task.head", head, "--task.void", "11")
    return finetune(data, init, out, steps, "--task", "segmentation", *kind, *flags)


def test_validation_chooses_and_the_test_is_looked_at_once_at_the_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[tuple[int, str]] = []
    whole = supervised.confusion_on

    def confusion_on(model: Any, images: Any, *rest: Any) -> Any:
        looked.append((len(metrics(tmp_path / "run")), images.masks.parent.name))
        return whole(model, images, *rest)

    monkeypatch.setattr(segmentation, "confusion_on", confusion_on)
    assert segment(folder / "train", "", tmp_path / "run", 4, "--plan.save-every", "2", *apart(folder)) == 0
    assert [where for _, where in looked] == ["val", "val", "val", "test"]
    assert looked[-1][0] == len(metrics(tmp_path / "run")), "nothing is trained after the test"
    scores = {line["step"]: line["validation_mean_iou"] for line in metrics(tmp_path / "run") if "loss" not in line}
    found = result(tmp_path / "run")
    assert found["validation_mean_iou"] == max(scores.values()) == scores[found["chosen_step"]]


def test_without_other_folders_no_image_is_in_two_parts(folder: Path) -> None:
    data = Data(path=str(folder / "train"), held_out=0.25)
    given = TASK.open(data, LOG, Path())
    parts = TASK.divide(given, data, "", "", SHARES, LOG)
    split = [names_of(part) for part in (parts.train.train, parts.validation, parts.test)]
    assert [len(names) for names in split] == [14, 4, 6]
    assert sorted(name for names in split for name in names) == names_of(given.train)
    tested = TASK.divide(given, data, str(folder / "test"), "", SHARES, LOG)
    assert (len(tested.train.train), len(tested.validation), len(tested.test)) == (18, 6, 6)
    chosen = TASK.divide(given, data, "", str(folder / "val"), SHARES, LOG)
    assert (len(chosen.train.train), len(chosen.validation), len(chosen.test)) == (18, 5, 6)
    official = TASK.divide(given, data, str(folder / "test"), str(folder / "val"), SHARES, LOG)
    assert (len(official.train.train), len(official.validation), len(official.test)) == (24, 5, 6)


def test_parts_without_any_class_are_refused_before_anything_is_learned(tmp_path: Path) -> None:
    """A score of void pixels alone would be no number, and no weights the best."""
    made = scenes(tmp_path / "data", 8)
    data = Data(path=str(made), held_out=0.25)
    given = TASK.open(data, LOG, Path())
    parts = TASK.divide(given, data, "", "", SHARES, LOG)
    for some, role in (
        (parts.train.train, "to learn from"),
        (parts.validation, "for choices"),
        (parts.test, "for the test"),
    ):
        assert isinstance(some, SegmentationDataset)
        kept = {some.mask(index): some.mask(index).read_bytes() for index in range(len(some))}
        shapes = [some[index].image.shape[:2] for index in range(len(some))]
        for mask, shape in zip(kept, shapes, strict=True):
            Image.fromarray(np.full(shape, TASK.void, np.uint8)).save(mask)
        refusal = f"the {len(some)} images {role} show no class; their masks are void everywhere"
        with pytest.raises(DataError, match=refusal):
            TASK.divide(given, data, "", "", SHARES, LOG)
        for mask, content in kept.items():
            mask.write_bytes(content)


def test_a_share_of_the_labels_is_part_of_a_larger_share(folder: Path) -> None:
    data = Data(path=str(folder / "train"))
    given = TASK.open(data, LOG, Path())
    elsewhere = (str(folder / "test"), str(folder / "val"))
    few, more = (
        names_of(TASK.divide(given, data, *elsewhere, SHARES._replace(labels=share), LOG).train.train)
        for share in (0.25, 0.5)
    )
    assert (len(few), len(more)) == (6, 12)
    assert set(few) < set(more)


def test_folders_and_classes_have_the_names_that_are_given(tmp_path: Path) -> None:
    made = scenes(tmp_path / "data", 8)
    (made / "images").rename(made / "photos")
    (made / "masks").rename(made / "labels")
    (tmp_path / "names.txt").write_text("around\nred\nblue\n")
    task = replace(TASK, images="photos", masks="labels", class_names=str(tmp_path / "names.txt"))
    given = task.open(Data(path=str(made)), LOG, Path())
    assert given.train.classes == ("around", "red", "blue")
    assert len(given.train) == 8
    assert TASK.open(Data(path=str(scenes(tmp_path / "other"))), LOG, Path()).train.classes == ("0", "1", "2")
    first = replace(TASK, void=0).open(Data(path=str(tmp_path / "other")), LOG, Path())
    assert first.train.classes == tuple(map(str, range(1, 12)))


def test_the_backbone_comes_along_at_another_resolution_and_aspect(
    folder: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--backbone.img-size", "12", "20")
    assert segment(folder / "train", backbone, tmp_path / "run", 1, *STILL, *size) == 0
    assert "tensors of the backbone, for 3x5 patches instead of 4x4; the head is new" in capsys.readouterr().err
    there, here = (load_file(newest_checkpoint(run) / "model.safetensors") for run in (backbone, tmp_path / "run"))
    assert torch.equal(here["backbone.blocks.1.mlp.fc1.weight"], there["backbone.blocks.1.mlp.fc1.weight"])
    assert here["backbone.pos_embed"].shape == (1, 16, 16)


def test_a_second_run_has_the_head_where_it_is_of_the_same_kind_and_classes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(folder / "train", "", tmp_path / "first", 2) == 0
    capsys.readouterr()
    assert segment(folder / "train", tmp_path / "first", tmp_path / "same", 1, *STILL) == 0
    assert "tensors of the backbone and the head\n" in capsys.readouterr().err
    assert segment_with("linear", folder / "train", tmp_path / "first", tmp_path / "other", 1, *STILL) == 0
    assert "tensors of the backbone; the head is new" in capsys.readouterr().err


def test_a_frozen_backbone_does_not_move(folder: Path, backbone: Path, tmp_path: Path) -> None:
    assert segment_with("linear", folder / "train", backbone, tmp_path / "run", 3, "--freeze", *FAST) == 0
    there, here = (load_file(newest_checkpoint(run) / "model.safetensors") for run in (backbone, tmp_path / "run"))
    assert all(torch.equal(value, there[name]) for name, value in here.items() if name.startswith("backbone."))
    assert here["head.linear.bias"].abs().sum() > 0


def test_a_step_that_is_not_finite_is_replayed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gradients = Trainer.gradients

    def broken(trainer: Trainer, batch: Batch, *arguments: Any) -> Any:
        bad = replace(batch, image=batch.image * float("nan")) if trainer.step == 2 else batch
        return gradients(trainer, bad, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "gradients", broken)
        assert segment(folder / "train", "", tmp_path / "run", 4, *apart(folder)) == 5
        capsys.readouterr()
        assert main(["replay", str(tmp_path / "run" / "captures" / "step-00000002"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["reproduced"]


def test_errors_are_one_line_and_leave_no_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(data: Path, code: int, *flags: str) -> str:
        assert segment(data, "", tmp_path / "run", 2, *flags) == code
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err.splitlines()[-1]

    train = folder / "train"
    line = refused(train, 3, "--task.void", "255", "--task.num-classes", "3")
    assert re.match(rf"error: {train}/masks/\d\d\.png has the id 11; there are 3 classes, and 255 is void; say", line)
    assert refused(train, 2, "--labels-per-class", "2") == (
        "error: labels_per_class where images have several labels; use --label-share"
    )
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\n")
    names = ("--task.class-names", str(tmp_path / "names.txt"), "--task.num-classes", "4")
    assert refused(train, 2, *names) == f"error: {tmp_path}/names.txt names 3 classes; task.num_classes is 4"
    other = scenes(tmp_path / "other", 3)
    Image.fromarray(np.full((24, 32), 5, np.uint8)).save(other / "masks" / "01.png")
    assert refused(train, 3, "--test", str(other)).startswith(
        f"error: {other}/masks/01.png has the id 5; there are 3 classes, and 11 is void; say how many"
    )
    (other / "masks" / "01.png").unlink()
    assert refused(other, 3).startswith(f"error: 1 of 3 images have no mask; {other}/images/01.png is the first; it ne")


def test_what_cannot_be_divided_or_has_one_class_is_refused(folder: Path, tmp_path: Path) -> None:
    data = Data(path=str(scenes(tmp_path / "two", 2)))
    with pytest.raises(DataError, match="only 2 images with masks; some are learned from, some are for choices and so"):
        TASK.divide(TASK.open(data, LOG, Path()), data, "", "", SHARES, LOG)
    with pytest.raises(DataError, match="no images given; use --data FOLDER"):
        TASK.open(Data(), LOG, Path())
    flat = scenes(tmp_path / "flat", 2)
    for file in (flat / "masks").iterdir():
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(file)
    with pytest.raises(DataError, match=r"masks has 1 classes; use 2 to 254, and --task\.void"):
        TASK.open(Data(path=str(flat)), LOG, Path())
    with pytest.raises(DataError, match=r"masks has void pixels only; check --task\.void"):
        replace(TASK, void=0, num_classes=3).open(Data(path=str(flat)), LOG, Path())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"void": 256}, "the void id 256; use 0 to 255"),
        ({"num_classes": 1}, "1 classes; use 2 to 254"),
        ({"window": 0.0}, "a window of 0.0; use a share of the image's side in"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Segmentation(**fields)


@pytest.mark.slow
def test_street_scenes_are_read_in_their_own_splits(tmp_path: Path) -> None:
    folder = Path(os.environ.get("SMALTI_TEST_DATA", "")) / "camvid"
    if "SMALTI_TEST_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("SMALTI_TEST_DATA does not name a folder with camvid/")
    flags = ("--backbone.img-size", "48", "64", "--backbone.patch-size", "8", "--plan.batch-size", "8", *FAST)
    assert segment(folder / "train", "", tmp_path / "run", 60, *flags, *apart(folder), *CPU) == 0
    found = result(tmp_path / "run")
    assert [found[f"{part}_images"] for part in ("train", "validation", "test")] == [367, 101, 233]
    assert found["classes"] == 11
    assert found["test_mean_iou"] > 0.1, "one class everywhere has less than 0.05"


def test_masks_of_0_and_255_are_learned_with_ids_auto_and_evaluated_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = scenes(tmp_path / "binary")
    for path in (data / "masks").iterdir():
        ids = np.asarray(Image.open(path))
        mask = np.where(np.isin(ids, (1, 2)), 255, 0).astype(np.uint8)
        mask[0, :2] = 90, 200  # as at a smooth edge
        Image.fromarray(mask).save(path)
    assert segment(data, "", tmp_path / "run", 1) == 3
    assert "--task.ids auto" in " ".join(capsys.readouterr().err.split())
    assert segment(data, "", tmp_path / "run", 1, "--task.ids", "auto") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "classes are 0 255; others count as the nearest" in said
    task = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["task"]
    assert (task["ids"], task["other_ids"]) == ([0, 255], "nearest")
    assert main(["evaluate", str(tmp_path / "run"), str(data), *CPU]) == 0
    assert set(result(tmp_path / "run")["test_class_iou"]) == {"0", "255"}
