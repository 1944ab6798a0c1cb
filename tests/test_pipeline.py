"""The whole story on small pictures: tokenizer, pretraining, measurement, report; interrupted, and as the demo."""

import io
import json
import math
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from smalti.cli import main
from smalti.evaluation.bound import describe
from tests.report.reading import inert
from tests.small_runs import (
    CPU,
    DEMO_FLAGS,
    FEWEST,
    finetune,
    flat_pictures,
    interrupted_before,
    metrics,
    newest_checkpoint,
    pictures,
    pretrain,
    result,
    scenes,
    segment,
    train_tokenizer,
    weights,
)

CHECKPOINT = {"model.safetensors", "state.safetensors", "state.json", "MANIFEST.json"}
TOKENIZER_STEPS, PRETRAIN_STEPS = 20, 80
FEW = [*CPU, "--draws", "2"]
"""Probes of frozen features with few draws."""


@dataclass(frozen=True)
class Story:
    """Where everything lies."""

    photos: Path
    tokenizer: Path
    backbone: Path
    scenes: Path


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Both stages on two classes of pictures."""
    root = tmp_path_factory.mktemp("story")
    made = Story(pictures(root / "photos"), root / "tokenizer", root / "backbone", scenes(root / "scenes"))
    assert train_tokenizer(made.photos, made.tokenizer, TOKENIZER_STEPS) == 0
    assert pretrain(made.photos, made.tokenizer, made.backbone, PRETRAIN_STEPS) == 0
    return made


@pytest.fixture(scope="module")
def evaluated(story: Story) -> dict[str, Any]:
    """What `evaluate` says of the backbone on the images of its run."""
    with redirect_stdout(io.StringIO()) as printed:
        assert main(["evaluate", str(story.backbone), str(story.photos), *FEW, "--json"]) == 0
    value: dict[str, Any] = json.loads(printed.getvalue().splitlines()[-1])
    return value


def json_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The last line of standard output."""
    value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return value


def is_self_contained(page: Path) -> bool:
    """No request to anywhere, and pictures in it."""
    text = inert(page.read_text())
    requests = re.findall(r"https?://|url\((?!#)|@import|<script|(?:src|href)=[\"'](?!data:|#)", text)
    return requests == [] and "data:image" in text


@pytest.mark.parametrize(("name", "steps"), [("tokenizer", TOKENIZER_STEPS), ("backbone", PRETRAIN_STEPS)])
def test_a_run_folder_holds_the_whole_run(story: Story, name: str, steps: int) -> None:
    run: Path = getattr(story, name)
    whole = {"config.json", "data.json", "metrics.jsonl", "checkpoints", "result.json"}
    assert {path.name for path in run.iterdir()} == whole
    assert newest_checkpoint(run).name == f"step-{steps:08d}"
    assert {path.name for path in newest_checkpoint(run).iterdir()} == CHECKPOINT
    assert [line["step"] for line in metrics(run)] == list(range(1, steps + 1))


def test_every_number_that_was_recorded_is_finite(story: Story) -> None:
    for run in (story.tokenizer, story.backbone):
        lines = [*metrics(run), result(run)]
        numbers = [value for line in lines for value in line.values() if isinstance(value, float)]
        assert all(math.isfinite(number) for number in numbers)
        assert {"stage", "step", "lr", "grad_norm", "loss"} <= set(metrics(run)[0])


def test_the_tokenizer_measures_itself_on_held_out_images(story: Story) -> None:
    found = result(story.tokenizer)
    assert {"psnr_db", "codebook_usage", "perplexity", "unigram_entropy_nats"} <= set(found)
    assert (found["train_images"], found["held_out_images"]) == (26, 6)
    assert (found["vocab_size"], found["steps"]) == (16, TOKENIZER_STEPS)
    assert found["psnr_db"] > 10
    assert 0 < found["codebook_usage"] <= 1


def test_the_loss_on_masked_tokens_falls(story: Story) -> None:
    losses = [line["loss"] for line in metrics(story.backbone)]
    assert sum(losses[-10:]) / 10 < losses[0] - 0.2


def test_pretraining_measures_itself_on_held_out_images(story: Story) -> None:
    found = result(story.backbone)
    assert {"loss_nats", "unigram_entropy_nats", "accuracy"} <= set(found)
    assert found["loss_nats"] < metrics(story.backbone)[0]["loss"]
    assert found["unigram_entropy_nats"] <= math.log(16)


def test_pretraining_measures_the_bound_before_and_after(story: Story) -> None:
    found = result(story.backbone)
    bound = found["bound"]
    assert (bound["images"], bound["patches"], bound["masked_patches"], bound["sub_pixels"]) == (16, 16, 6, 768)
    assert bound["uniform_rate_nats_per_patch"] == pytest.approx(math.log(16))
    assert bound["trained_bound_bits_per_dim"] < bound["untrained_bound_bits_per_dim"]
    masked = 16 / 6 * (bound["untrained_rate_nats_per_patch"] - bound["trained_rate_nats_per_patch"])
    assert found["loss_nats"] + masked == pytest.approx(metrics(story.backbone)[0]["loss"], abs=0.5)


def test_evaluate_measures_a_backbone_as_its_own_run_did(story: Story, evaluated: dict[str, Any]) -> None:
    at_the_end = result(story.backbone)
    assert evaluated["loss_nats"] == pytest.approx(at_the_end["loss_nats"])
    assert evaluated["bound"] == pytest.approx(at_the_end["bound"])


def test_evaluate_of_a_backbone_needs_no_labels(
    story: Story, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = flat_pictures(tmp_path / "images", 24)
    assert main(["evaluate", str(story.backbone), str(images), *CPU, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out.splitlines()[-1])
    assert {"loss_nats", "bound"} <= set(found)
    assert "linear" not in found
    assert (
        f"no probes: they need labels, and {images} has none; 24 of 24 images lie in no folder of a class" in said.err
    )
    assert "put images into one folder a class, or name a column label" in said.err
    assert describe(found["bound"]) in said.out


def test_evaluate_probes_a_backbone_whose_tokenizer_is_gone(
    story: Story, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(story.backbone, tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace(str(story.tokenizer), "gone"))
    assert main(["evaluate", str(tmp_path / "run"), str(story.photos), *FEWEST, "--json"]) == 0
    said = capsys.readouterr()
    assert "no loss and no bound: the tokenizer of the run is no longer in gone" in said.err
    assert "bound" not in json.loads(said.out.splitlines()[-1])


def test_without_a_density_there_are_rates_and_no_bound(story: Story, tmp_path: Path) -> None:
    assert train_tokenizer(story.photos, tmp_path / "tokenizer", 2, "--likelihood", "mse") == 0
    assert pretrain(story.photos, tmp_path / "tokenizer", tmp_path / "run", 2) == 0
    bound = result(tmp_path / "run")["bound"]
    assert bound["trained_bound_bits_per_dim"] is None
    assert bound["trained_rate_bits_per_dim"] > 0


def test_evaluate_probes_a_backbone(evaluated: dict[str, Any]) -> None:
    found = evaluated
    assert all(0 <= found[key] <= 1 for key in ("linear", "knn"))
    assert found["layer"] in range(3)
    assert set(found["validation"]) == {f"{block} {pooling}" for block in (1, 2) for pooling in ("cls", "mean", "both")}
    assert {"1 a class", "1 %", "100 %"} <= set(found["few"])


@pytest.mark.parametrize("given", [True, False])
def test_evaluate_takes_official_test_images(
    story: Story, tmp_path: Path, given: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given by --test, or as the folder test/ beside train/; class numbers are those of the training images."""
    pictures(tmp_path / "train")
    shutil.copytree(story.photos / "down", tmp_path / "test" / "down")
    place = [str(tmp_path / "train"), "--test", str(tmp_path / "test")] if given else [str(tmp_path)]
    assert main(["evaluate", str(story.backbone), *place, *FEWEST, "--json"]) == 0
    said = capsys.readouterr()
    count = len(list((tmp_path / "test" / "down").iterdir()))
    assert f"32 training and {count} test images of 2 classes" in said.err
    assert json.loads(said.out.splitlines()[-1])["test_images"] == count
    assert "frozen features " in said.out


def test_evaluate_measures_a_tokenizer(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(story.tokenizer), str(story.photos), *CPU, "--json"]) == 0
    found, at_the_end = json_of(capsys), result(story.tokenizer)
    assert found == {key: pytest.approx(at_the_end[key]) for key in found}


def test_the_report_needs_nothing_but_itself(story: Story, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(story.tokenizer), str(story.backbone), "--out", str(page), "--json"]) == 0
    assert json_of(capsys) == {"report": str(page)}
    assert is_self_contained(page)
    assert "The codebook" in page.read_text()
    assert "Masked, and dreamt back" in page.read_text()
    assert "What the two stages are worth as a model of images" in page.read_text()
    assert f"<strong>{result(story.backbone)['bound']['trained_bound_bits_per_dim']:.3f}</strong>" in page.read_text()


def test_a_report_lies_in_the_first_run_where_no_place_is_given(
    story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(story.backbone)]) == 0
    page = story.backbone / "report.html"
    assert capsys.readouterr().out.splitlines()[-1] == f"written: {page}"
    page.unlink()


Train = Callable[[Path], int]


@pytest.fixture(params=["train-tokenizer", "pretrain", "finetune", "segment"])
def training(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def verb(training: str) -> str:
    return "finetune" if training == "segment" else training


@pytest.fixture
def train(training: str, story: Story) -> Train:
    """Six steps of a run into a folder, saved every second one."""
    flags = ("--plan.save-every", "2")
    trainings: dict[str, Train] = {
        "train-tokenizer": lambda out: train_tokenizer(story.photos, out, 6, *flags),
        "pretrain": lambda out: pretrain(story.photos, story.tokenizer, out, 6, *flags),
        "finetune": lambda out: finetune(story.photos, story.backbone, out, 6, *flags, "--ema-decay", "0.9"),
        "segment": lambda out: segment(story.scenes, story.backbone, out, 6, *flags),
    }
    return trainings[training]


def test_the_same_command_ends_in_the_same_bytes(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "one") == train(tmp_path / "other") == 0
    assert weights(tmp_path / "one") == weights(tmp_path / "other")
    assert metrics(tmp_path / "one") == metrics(tmp_path / "other")
    assert result(tmp_path / "one") == result(tmp_path / "other")


@pytest.mark.parametrize("stop", [4, 5])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    stop: int,
    verb: str,
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(tmp_path / "whole") == 0
    run = tmp_path / "interrupted"
    with interrupted_before(stop, monkeypatch):
        assert train(run) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted"
    assert newest_checkpoint(run).name == "step-00000004"
    assert not (run / "result.json").exists()
    assert main([verb, "--resume", str(run)]) == 0
    assert "going on from step 4" in capsys.readouterr().err.splitlines()
    assert weights(run) == weights(tmp_path / "whole")
    assert metrics(run) == metrics(tmp_path / "whole")
    assert result(run) == result(tmp_path / "whole")


def test_a_line_that_was_cut_off_does_not_stop_a_resume(
    train: Train, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with interrupted_before(5, monkeypatch):
        assert train(tmp_path / "run") == 130
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"stage": "token')
    assert main([verb, f"--resume={tmp_path}/run"]) == 0
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_resuming_a_finished_run_changes_nothing(train: Train, verb: str, tmp_path: Path) -> None:
    assert train(tmp_path / "run") == 0
    before = weights(tmp_path / "run"), metrics(tmp_path / "run"), result(tmp_path / "run")
    assert main([verb, "--resume", str(tmp_path / "run")]) == 0
    assert (weights(tmp_path / "run"), metrics(tmp_path / "run"), result(tmp_path / "run")) == before


def test_pretraining_in_parts_is_pretraining(story: Story, tmp_path: Path) -> None:
    for parts in ("1", "4"):
        flags = ("--plan.accumulate", parts)
        assert pretrain(story.photos, story.tokenizer, tmp_path / parts, 3, *flags) == 0
    losses, in_parts = ([line["loss"] for line in metrics(tmp_path / parts)] for parts in ("1", "4"))
    assert in_parts == pytest.approx(losses, rel=1e-5)


def test_a_tokenizer_cannot_be_trained_in_parts(
    story: Story, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_tokenizer(story.photos, tmp_path / "run", 3, "--plan.accumulate", "4") == 2
    message = (
        "error: accumulate is 4, and the codes of this tokenizer are counted or moved over whole batches;"
        " use --plan.accumulate 1, and"
    )
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not (tmp_path / "run").exists()


def test_another_seed_ends_in_other_weights(story: Story, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        assert train_tokenizer(story.photos, tmp_path / seed, 2, "--seed", seed) == 0
    assert weights(tmp_path / "1") != weights(tmp_path / "2")


def demo(out: Path, *flags: str) -> int:
    steps = ["--tokenizer-steps", "4", "--pretrain-steps", "4"]
    return main(["demo", "--out", str(out), *steps, *DEMO_FLAGS, *flags, "--json"])


def test_the_demo_on_a_folder_of_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = flat_pictures(tmp_path / "photos", 24), tmp_path / "demo"
    assert demo(out, "--data", str(photos)) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert result(out) == found
    assert "probe" not in found
    assert (found["tokenizer"]["steps"], found["mim"]["steps"]) == (4, 4)
    assert "repeat exactly with --tokenizer-steps 4 --pretrain-steps 4" in printed
    assert is_self_contained(out / "report.html")
    assert {"config.json", "result.json", "report.html", "tokenizer", "pretrain"} == {p.name for p in out.iterdir()}


def test_the_demo_twice_moves_the_first_one_aside(tmp_path: Path) -> None:
    """J07."""
    photos, out = flat_pictures(tmp_path / "photos", 24), tmp_path / "demo"
    assert demo(out, "--data", str(photos)) == 0
    assert demo(out, "--data", str(photos)) == 0
    assert weights(out / "pretrain") == weights(tmp_path / "demo.1" / "pretrain")


def test_the_runs_of_a_demo_are_runs_like_any_other(tmp_path: Path, story: Story) -> None:
    out = tmp_path / "demo"
    assert demo(out, "--data", str(story.photos)) == 0
    assert main(["evaluate", str(out / "pretrain"), str(story.photos), *FEWEST]) == 0
    assert main(["report", str(out / "tokenizer"), str(out / "pretrain"), "--out", str(tmp_path / "page.html")]) == 0


@pytest.mark.slow
def test_the_demo_without_steps_spends_its_budget(tmp_path: Path) -> None:
    photos, out = flat_pictures(tmp_path / "photos", 24), tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--data", str(photos), "--budget", "20s", *DEMO_FLAGS]) == 0
    assert result(out)["mim"]["steps"] > 20
    assert result(out)["seconds"] < 40


def test_the_demo_on_embedded_images_probes_what_was_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes six seconds of probes: of pixels, two random networks and one that has learned."""
    vit = ["--pretrain.backbone.embed-dim", "16", "--pretrain.backbone.depth", "1", "--pretrain.compile", "off"]
    few = ["--tokenizer.data.limit", "600", "--pretrain.data.limit", "600", "--tokenizer.tokenizer.vocab-size", "16"]
    steps = ["--tokenizer-steps", "4", "--pretrain-steps", "4"]
    assert main(["demo", "--out", str(tmp_path / "demo"), *CPU, *vit, *few, *steps]) == 0
    found, printed = result(tmp_path / "demo"), capsys.readouterr().out
    assert found["mim"]["train_images"] == 600
    probe = found["probe"]
    assert probe["gain_points"] == pytest.approx(100 * (probe["pretrained"]["linear"] - probe["random"]["linear"]))
    assert {"pretrained", "raw pixels"} <= set(probe["all"])
    assert all(f"\n{name} " in printed for name in probe["all"])
    assert "What the network has learned" in (tmp_path / "demo" / "report.html").read_text()
