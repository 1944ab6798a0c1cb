"""`smalti finetune`: where weights come from, what is chosen on, and that the test is looked at once, at the end."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from smalti.core.compute import Compute
from smalti.core.errors import CheckpointError, DataError, UsageError
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import Data, InMemoryData, TrainingData
from smalti.data.transforms.views import NO_JITTER, RandomResizedCrop
from smalti.evaluation.supervised import class_scores
from smalti.models.mim import build_mim
from smalti.models.vit import ViT
from smalti.runs import classification_task as classification
from smalti.runs import finetune as run
from smalti.runs.classification_task import Classification
from smalti.runs.finetune import Finetune
from smalti.runs.folder import read_config
from smalti.runs.model_selection import Best, Measured, Shares, divide
from smalti.runs.models import load_finetuned
from smalti.training.optim import Optimiser
from smalti.training.trainer import Trainer
from smalti.training.training_plan import Plan
from tests.other_names import as_timm_vit
from tests.small_runs import (
    finetune,
    flat_pictures,
    metrics,
    newest_checkpoint,
    picture,
    pictures,
    pretrain,
    result,
    weights,
)

COMPUTE = Compute(torch.device("cpu"), torch.float32)
VIT = ViT(img_size=(8, 8), patch_size=4, embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.0, init="xavier")
PIXELS = ("--target", "pixels")


def bright_and_dark(num: int, seed: int = 0) -> InMemoryDataset:
    """Noise of two classes that a head tells apart by its mean."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 2
    pixels = rng.integers(0, 150, (num, 3, 8, 8)) + 100 * labels[:, None, None, None]
    return InMemoryDataset(torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels), ("dark", "bright"))


def config(out: Path, **changes: Any) -> Finetune:
    plan = Plan(steps=30, batch_size=32, log_every=10, save_every=10)
    optimiser = Optimiser(lr=3e-3, layer_decay=0.75)
    crop = RandomResizedCrop(scale=(0.5, 1.0))
    start = Finetune(data=Data(side=8), out=str(out), backbone=VIT, crop=crop, jitter=NO_JITTER, compile="off")
    return replace(start, plan=plan, optimiser=optimiser, **changes)


def trained(start: Finetune, images: InMemoryData | None = None, resume: bool = False) -> dict[str, Any]:
    shown = TrainingData(bright_and_dark(200), bright_and_dark(80, seed=1)) if images is None else images
    return run.main(start, resume=resume, images=shown, compute=COMPUTE)


def test_labels_are_learned_from_nothing(tmp_path: Path) -> None:
    found = trained(config(tmp_path / "run"))
    assert found["test_accuracy"] > 0.9
    assert (found["train_images"], found["validation_images"], found["test_images"]) == (180, 20, 80)
    assert (found["classes"], found["steps"]) == (2, 30)
    assert sum(map(sum, found["test_confusion"])) == 80
    assert found["test_class_accuracy"].keys() == {"dark", "bright"}
    assert found == result(tmp_path / "run")


def test_shuffled_labels_are_guessed_by_chance_on_test_images(tmp_path: Path) -> None:
    train, test = bright_and_dark(600), bright_and_dark(600, seed=1)
    rng = np.random.default_rng(3)
    learned, judged = (
        InMemoryDataset(part.images, part.labels[rng.permutation(len(part))], part.classes) for part in (train, test)
    )
    found = trained(config(tmp_path / "run"), TrainingData(learned, judged))
    assert found["test_accuracy"] == pytest.approx(0.5, abs=0.1)


def test_validation_chooses_and_the_test_is_looked_at_once_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    whole = class_scores

    def scores(model: Any, images: InMemoryDataset, *rest: Any) -> Any:
        seen.append((len(metrics(tmp_path / "run")), len(images)))
        return whole(model, images, *rest)

    monkeypatch.setattr(classification, "class_scores", scores)
    trained(config(tmp_path / "run"))
    assert [count for _, count in seen] == [20, 20, 20, 20, 80]
    assert seen[-1][0] == len(metrics(tmp_path / "run")), "nothing is trained after the test"


def test_test_images_have_no_part_in_what_is_learned_or_chosen(tmp_path: Path) -> None:
    train, found = bright_and_dark(200), {}
    for name, test in {"one": bright_and_dark(80, seed=1), "other": bright_and_dark(44, seed=2)}.items():
        found[name] = trained(config(tmp_path / name), TrainingData(train, test))
    assert weights(tmp_path / "one") == weights(tmp_path / "other")
    assert metrics(tmp_path / "one") == metrics(tmp_path / "other")
    assert found["one"]["chosen_step"] == found["other"]["chosen_step"]


@pytest.mark.parametrize(("given", "chosen"), [([0.9, 0.5, 0.6], 10), ([0.5, 0.9, 0.6], 20), ([0.0, 0.0, 0.0], 30)])
def test_the_best_weights_are_used_and_of_equally_good_ones_the_last(
    given: list[float], chosen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([*given, 0.1, 0.1])
    monkeypatch.setattr(Classification, "measure", lambda *_: Measured({"accuracy": next(scores)}, {}))
    assert trained(config(tmp_path / "run"))["chosen_step"] == chosen
    kept = load_file(tmp_path / "run" / "best" / "checkpoints" / f"step-{chosen:08d}" / "model.safetensors")
    model = load_finetuned(str(tmp_path / "run"), COMPUTE)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_the_last_weights_are_used_where_that_is_asked_for(tmp_path: Path) -> None:
    found = trained(config(tmp_path / "run", choose="last"))
    assert found["chosen_step"] == 30
    assert not (tmp_path / "run" / "best").exists()
    assert all(line["stage"] == "finetune" for line in metrics(tmp_path / "run"))


def test_weights_that_a_changed_continuation_has_left_behind_are_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.3, 0.9, 0.3, 0.4, 0.4])
    monkeypatch.setattr(Classification, "measure", lambda *_: Measured({"accuracy": next(scores)}, {}))
    start = config(tmp_path / "run")
    best = Best.look

    def look(self: Best, trainer: Trainer) -> None:
        best(self, trainer)
        if trainer.step == 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Best, "look", look)
        with pytest.raises(KeyboardInterrupt):
            trained(start)
    assert {path.name for path in (tmp_path / "run" / "best" / "checkpoints").iterdir()} >= {"step-00000030"}
    left = replace(read_config(start.out, Finetune), out=start.out)
    shorter = replace(left, plan=replace(left.plan, steps=25))
    assert trained(shorter, resume=True)["chosen_step"] == 25


def test_few_labels_and_a_fixed_number_of_steps(tmp_path: Path) -> None:
    start = config(tmp_path / "run", labels_per_class=5)
    found = trained(replace(start, plan=replace(start.plan, repeat=True)))
    assert (found["train_images"], found["validation_images"], found["steps"]) == (10, 20, 30)
    share = trained(config(tmp_path / "share", label_share=0.3))
    assert share["train_images"] == 60


def test_a_batch_larger_than_the_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="10 images to learn from, and a batch has 32; use --plan"):
        trained(config(tmp_path / "run", labels_per_class=5))


def test_a_frozen_backbone_does_not_move(tmp_path: Path) -> None:
    found = trained(config(tmp_path / "run", freeze=True, ema_decay=0.9))
    assert found["test_accuracy"] > 0.6
    start, after = VIT.build(0).state_dict(), load_finetuned(str(tmp_path / "run"), COMPUTE).backbone.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in after.items())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("finetune") / "photos")


@pytest.fixture(scope="module")
def backbone(photos: Path) -> Path:
    """A pretraining run on pixels."""
    out = photos.parent / "backbone"
    assert main_pretrain(photos, out) == 0
    return out


def main_pretrain(photos: Path, out: Path, *flags: str) -> int:
    return pretrain(photos, "", out, 3, *PIXELS, *flags)


def start_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights that a run had before its first step, as its zeroth step would have left them."""
    return load_file(newest_checkpoint(path) / "model.safetensors")


STILL = ("--optimiser.lr", "1e-30", "--optimiser.end-lr", "0", "--optimiser.weight-decay", "0")


def test_the_backbone_of_a_pretraining_run_comes_along_and_its_head_does_not(
    photos: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(photos, backbone, tmp_path / "run", 1, *STILL) == 0
    said = capsys.readouterr().err
    assert "tensors of the backbone; the head and the norm of pooled patches are new" in said
    there, here = start_weights(backbone), start_weights(tmp_path / "run")
    shared = [name for name in here if name.startswith("backbone.")]
    assert len(shared) > 20
    assert all(torch.equal(here[name], there[name]) for name in shared)
    assert here.keys() - there.keys() == {"fc_norm.weight", "fc_norm.bias"}
    assert len(here["head.bias"]) == 2


def test_the_special_token_is_read_with_the_last_norm_of_the_run(photos: Path, backbone: Path, tmp_path: Path) -> None:
    assert finetune(photos, backbone, tmp_path / "run", 1, *STILL, "--task.pooling", "cls") == 0
    there, here = start_weights(backbone), start_weights(tmp_path / "run")
    assert torch.equal(here["backbone.norm.weight"], there["backbone.norm.weight"])
    assert "fc_norm.weight" not in here


def test_a_second_fine_tuning_has_the_head_where_the_classes_are_the_same(
    photos: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(photos, backbone, tmp_path / "first", 3) == 0
    others = pictures(tmp_path / "others")
    (others / "across").rename(others / "wide")
    capsys.readouterr()
    lines = {
        "same": (photos, "tensors of the backbone, the head and the norm of pooled patches"),
        "other": (others, "tensors of the backbone and the norm of pooled patches; the head is new"),
    }
    for name, (data, came) in lines.items():
        assert finetune(data, tmp_path / "first", tmp_path / name, 1, *STILL) == 0
        line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("from "))
        assert line.endswith(came)
    first = load_file(max((tmp_path / "first" / "best" / "checkpoints").iterdir()) / "model.safetensors")
    same, other = (start_weights(tmp_path / name) for name in ("same", "other"))
    assert all(torch.equal(same[name], value) for name, value in first.items())
    assert torch.equal(other["fc_norm.weight"], first["fc_norm.weight"])
    assert not torch.equal(other["head.weight"], first["head.weight"])


def test_weights_of_timm_at_another_resolution(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = build_mim(replace(VIT, img_size=(8, 8)), 5, seed=4)
    save_file({k: v.contiguous() for k, v in as_timm_vit(there).items()}, tmp_path / "vit.safetensors")
    assert finetune(photos, tmp_path / "vit.safetensors", tmp_path / "run", 1, *STILL) == 0
    assert "for 4x4 patches instead of 2x2; the head and the norm of pooled patches are new" in capsys.readouterr().err
    here = start_weights(tmp_path / "run")
    assert torch.equal(here["backbone.blocks.1.mlp.fc1.weight"], there.state_dict()["backbone.blocks.1.mlp.fc1.weight"])
    assert here["backbone.pos_embed"].shape == (1, 17, 16)


@pytest.mark.slow
def test_a_base_network_goes_from_224_to_384(tmp_path: Path) -> None:
    there = build_mim(ViT(), 5, seed=4)
    save_file({k: v.contiguous() for k, v in as_timm_vit(there).items()}, tmp_path / "vit.safetensors")
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (8, 3, 384, 384), np.uint8))
    images = InMemoryDataset(pixels, torch.arange(8) % 2, ("even", "odd"))
    start = config(tmp_path / "run", init=str(tmp_path / "vit.safetensors"))
    larger = replace(start, data=Data(side=384), backbone=ViT(img_size=(384, 384)), plan=Plan(steps=2, batch_size=2))
    found = trained(larger, TrainingData(images, images))
    assert (found["steps"], found["test_images"]) == (2, 8)
    assert start_weights(tmp_path / "run")["backbone.pos_embed"].shape == (1, 577, 768)


def test_pixels_are_normalised_as_in_the_run_to_start_from(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_pretrain(photos, tmp_path / "start", "--normalisation", "imagenet") == 0
    capsys.readouterr()
    assert finetune(photos, tmp_path / "start", tmp_path / "run", 1) == 0
    assert f"pixels as {tmp_path / 'start'} sees them: mean (0.485, 0.456, 0.406)" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["backbone"]["mean"][0] == 0.485


def test_a_run_without_a_backbone_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"smalti": "0", "config": {"kind": "TrainTokenizer"}}')
    assert finetune(photos, tmp_path, tmp_path / "run") == 2
    message = (
        f"error: {tmp_path} is a run of train-tokenizer; there is no backbone in it; give a run of pretrain or finetune"
    )
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert not (tmp_path / "run").exists()


def test_another_backbone_is_refused_with_the_flag(
    photos: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(photos, backbone, tmp_path / "run", 1, "--backbone.depth", "3") == 2
    assert "has depth 2, and the backbone has depth 3; use --backbone.depth 2" in capsys.readouterr().err


def test_a_folder_of_test_images_may_lack_classes_but_has_no_others(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = pictures(tmp_path / "test", per_class=5)
    for file in (test / "across").iterdir():
        file.unlink()
    (test / "across").rmdir()
    assert finetune(photos, "", tmp_path / "run", 2, "--test", str(test)) == 0
    found = result(tmp_path / "run")
    assert (found["train_images"], found["validation_images"], found["test_images"]) == (26, 6, 5)
    assert found["test_class_accuracy"]["across"] is None
    (test / "down").rename(test / "sideways")
    assert finetune(photos, "", tmp_path / "other", 2, "--test", str(test)) == 3
    message = (
        f"error: {test} cannot be the test; class sideways is not among those to learn; use the same class folders"
    )
    assert capsys.readouterr().err.splitlines()[-1] == message
    (test / "sideways").rename(test / "Down")
    assert finetune(photos, "", tmp_path / "other", 2, "--test", str(test)) == 3
    alike = "class Down is not among those to learn, but 'down' is, which differs in case or Unicode form only; use"
    assert alike in capsys.readouterr().err.splitlines()[-1]


def of_several_labels(folder: Path, count: int = 40) -> Path:
    """A list of stripes across or down, on bright or dark ground; a line for each with all its labels."""
    folder.mkdir()
    lines = ["path,labels"]
    for number in range(count):
        across, bright = bool(number % 2), bool(number // 2 % 2)
        pixels = np.asarray(picture(number, across)).astype(int) // 2 + 120 * bright
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,{'|'.join(['across'] * across + ['bright'] * bright) or '|'}")
    (folder / "list.csv").write_text("\n".join(lines))
    return folder / "list.csv"


def test_several_labels_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = of_several_labels(tmp_path / "images")
    flags = ("--task.multi-label", "--label-share", "0.5", "--optimiser.lr", "5e-3", "--augment.operations", "0")
    assert finetune(images, "", tmp_path / "run", 60, *flags, "--plan.log-every", "20") == 0
    found = result(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["across", "bright"]
    assert found["test_average_precision"].keys() == {"across", "bright"}
    assert found["test_average_precision"]["bright"] > 0.9
    assert 0 < found["validation_mean_average_precision"] <= 1
    assert (found["classes"], found["train_images"]) == (2, 16)
    assert "mean_average_precision" in capsys.readouterr().err.splitlines()[-3]
    others = of_several_labels(tmp_path / "others", 4)
    others.write_text(others.read_text().replace("across|bright", "bright|across"))
    assert finetune(images, "", tmp_path / "test", 2, *flags, "--test", str(others)) == 0, "another order is the same"
    others.write_text(others.read_text().replace("bright", "blue"))
    assert finetune(images, "", tmp_path / "other", 2, *flags, "--test", str(others)) == 3
    assert "class blue is not among those to learn" in capsys.readouterr().err.splitlines()[-1]


def test_validation_images_may_be_given_apart(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apart, test = pictures(tmp_path / "apart", per_class=5), pictures(tmp_path / "test", per_class=4)
    counts = {(): (26, 10, 6), ("--test", str(test)): (26, 10, 8)}
    for flags, expected in counts.items():
        run = tmp_path / f"run{len(flags)}"
        assert finetune(photos, "", run, 2, "--validation-data", str(apart), *flags) == 0
        assert tuple(result(run)[f"{part}_images"] for part in ("train", "validation", "test")) == expected
    (apart / "down").rename(apart / "sideways")
    assert finetune(photos, "", tmp_path / "other", 2, "--validation-data", str(apart)) == 3
    assert f"error: {apart} cannot be the validation images; class sideways is not among" in capsys.readouterr().err


def test_images_without_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = flat_pictures(tmp_path / "images", 12)
    assert finetune(images, "", tmp_path / "run") == 3
    cause = f"12 of 12 images lie in no folder of a class, but in {images} itself"
    fix = "put images into one folder a class, or name a column label"
    message = f"error: {images} has no labels of two classes or more; {cause}; {fix}"
    assert capsys.readouterr().err.splitlines()[-1] == message
    photos = pictures(tmp_path / "photos", per_class=8)
    assert finetune(photos, "", tmp_path / "run", 2, "--test", str(images)) == 3
    message = f"error: {images} cannot be the test: it has no labels; {cause}; {fix}"
    assert capsys.readouterr().err.splitlines()[-1] == message


def test_too_few_labelled_images_are_refused(tmp_path: Path) -> None:
    data = Data(path=str(pictures(tmp_path / "photos", per_class=1)), side=16)
    with pytest.raises(DataError, match="too few labelled images; 1 are learned from, 0 are for choices, 1 for the te"):
        divide(data.load(Log()), data, "", Shares(0.1, 1.0, None, 0), Log())


def test_streamed_images_are_divided_like_those_in_memory(photos: Path) -> None:
    shares = Shares(validation=0.25, labels=0.5, per_class=None, seed=0)
    data = Data(path=str(photos), side=16, held_out=0.2)
    streamed = divide(replace(data, memory="stream", num_workers=0).open(Log()), data, "", shares, Log())
    resident = divide(data.load(Log()), data, "", shares, Log())
    assert len(streamed.train.train) == len(resident.train.train)
    assert len(streamed.validation) == len(resident.validation) == 6
    assert streamed.classes == ("across", "down")
    assert (
        finetune(photos, "", photos.parent / "streamed", 2, "--data.memory", "stream", "--data.num-workers", "0") == 0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_share": 0.0}, "a label_share of 0.0; use one in"),
        ({"labels_per_class": 0}, "labels_per_class is 0; use at least 1"),
        (
            {"labels_per_class": 2, "task": Classification(multi_label=True)},
            "labels_per_class where images have several labels; use --label-share",
        ),
        ({"validation": 1.0}, "a validation share of 1.0; use one in"),
        ({"ema_decay": 1.0}, "ema_decay 1.0; use one in"),
        ({"profile": -1}, "profile is -1; use 0 or more steps"),
        ({"seed": -1}, "a seed of -1; use 0 to 2"),
        ({"data": Data(channels=1)}, "data.channels 1 and backbone.in_chans 3 differ"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Finetune(**changes)


def test_an_impossible_smoothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a label_smoothing of 1\.0; use one in"):
        Classification(label_smoothing=1.0)


def test_a_run_folder_without_a_best_checkpoint_says_so(tmp_path: Path) -> None:
    trained(config(tmp_path / "run", choose="last"))
    about = tmp_path / "run" / "config.json"
    about.write_text(about.read_text().replace('"choose": "last"', '"choose": "best"'))
    with pytest.raises(CheckpointError, match="no usable checkpoint in"):
        load_finetuned(str(tmp_path / "run"), COMPUTE)
