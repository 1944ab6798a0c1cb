"""`smalti plan`: what it proposes for which images and times, and that its commands are commands."""

import importlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.cli import main as smalti
from smalti.core.compute import Compute
from smalti.core.errors import DataError, UsageError
from smalti.core.log import Log
from smalti.data.datasets.dataset import embedded
from smalti.data.datasets.open import open_source
from smalti.recipes import base, nano, small, tiny
from smalti.runs import dry_run as dry
from smalti.runs import plan
from smalti.runs.dry_run import DryRun, Stages
from smalti.runs.plan import Candidate, PlanAhead
from smalti.runs.proposal import Proposal, Survey
from tests.small_runs import flat_pictures, pictures

CPU = Compute(torch.device("cpu"), torch.float32)
ON_CPU = ["--device", "cpu", "--precision", "fp32", "--compile", "off"]
"""The number format is given, or both would be timed first."""
TINY, SMALL, BASE, NANO = (Stages(one.train_tokenizer(), one.pretrain()) for one in (tiny, small, base, nano))
RECIPES = {"tiny": Candidate(TINY), "small": Candidate(SMALL, 10_000), "base": Candidate(BASE, 100_000)}
SOURCE = embedded("test")
"""Nothing of it is looked at where dry runs are replaced."""
MANY = Survey(images=1_000_000, train=950_000, shorter_side=375, looked_at=64, unreadable=0)


def measured(stages: Stages, step: float = 0.1, reading: float = 0.0) -> DryRun:
    """A dry run with steps of so many seconds in both stages."""
    return DryRun(stages, step, step, reading, memory=10**9, device_memory=None)


def choice(
    seconds: Mapping[str, float],
    survey: Survey,
    monkeypatch: pytest.MonkeyPatch,
    hours: float = 10,
    device: str = "cpu",
) -> tuple[str, list[str]]:
    """The recipe chosen where steps take so long, and those that a dry run was made of."""
    names = {stages.pretrain.backbone.embed_dim: name for name, (stages, *_) in RECIPES.items()}
    tried: list[str] = []

    def name_of(stages: Stages) -> str:
        return names[stages.pretrain.backbone.embed_dim]

    def dry_run(stages: Stages, source: object, compute: Compute, expected: float) -> DryRun:
        tried.append(name_of(stages))
        return measured(stages, seconds[tried[-1]])

    monkeypatch.setattr(plan, "quick_estimate", lambda stages, source, compute: seconds[name_of(stages)])
    monkeypatch.setattr(plan, "dry_run", dry_run)
    compute = Compute(torch.device(device), torch.float32)
    config = PlanAhead("photos", hours=hours, device="cpu")
    return plan.choose(config, SOURCE, survey, RECIPES, compute, Log())[0], tried


@pytest.mark.parametrize(
    ("seconds", "chosen", "tried"),
    [
        ({"tiny": 0.01, "small": 0.1, "base": 0.5}, "base", ["base"]),
        ({"tiny": 0.01, "small": 0.1, "base": 1.6}, "small", ["base", "small"]),
        ({"tiny": 0.01, "small": 0.1, "base": 36.0}, "small", ["small"]),
        ({"tiny": 9.0, "small": 30.0, "base": 90.0}, "tiny", ["tiny"]),
    ],
)
def test_the_largest_recipe_with_enough_steps_is_chosen(
    seconds: dict[str, float], chosen: str, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choice(seconds, MANY, monkeypatch) == (chosen, tried)


def test_an_accelerator_is_given_the_benefit_of_the_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"tiny": 0.01, "small": 0.1, "base": 5.0}
    assert choice(seconds, MANY, monkeypatch)[1] == ["small"]
    assert choice(seconds, MANY, monkeypatch, device="meta")[1] == ["base", "small"]


@pytest.mark.parametrize(
    ("survey", "chosen"),
    [
        (MANY, "base"),
        (MANY._replace(shorter_side=150), "base"),
        (MANY._replace(shorter_side=149), "small"),
        (MANY._replace(shorter_side=32), "tiny"),
        (MANY._replace(train=99_999), "small"),
        (MANY._replace(train=9_999), "tiny"),
    ],
)
def test_a_recipe_suits_the_size_and_number_of_the_images(
    survey: Survey, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choice({"tiny": 0.1, "small": 0.1, "base": 0.1}, survey, monkeypatch)[0] == chosen


@pytest.mark.parametrize(
    ("train", "codes", "sizes"),
    [(950_000, 8192, (64, 64)), (10_000, 1024, (64, 64)), (63, 64, (32, 32)), (1, 64, (1, 1))],
)
def test_codebook_and_batches_suit_the_number_of_images(train: int, codes: int, sizes: tuple[int, int]) -> None:
    tokenizer, pretrain = plan.fit_recipe(TINY, PlanAhead("photos"), MANY._replace(train=train))
    assert tokenizer.tokenizer.vocab_size == codes
    assert (tokenizer.plan.batch_size, pretrain.plan.batch_size) == sizes
    assert tokenizer.data.path == pretrain.data.path == "photos"


def test_steps_are_those_that_fit_the_time() -> None:
    """Ten hours, 5 % of them for the rest: 34 200 s; the tokenizer takes its 2000 steps."""
    steps = plan.affordable_steps(10, MANY, measured(TINY, 0.5))
    assert (steps.tokenizer, steps.pretrain) == (2000, 66_400)
    assert steps.full == 500_000
    assert plan.affordable_steps(1e6, MANY, measured(TINY, 0.5)).pretrain == 500_000


def test_the_tokenizer_takes_a_share_of_a_short_time_and_there_are_always_some_steps() -> None:
    steps = plan.affordable_steps(0.1, MANY, measured(TINY, 0.5))
    assert (steps.tokenizer, steps.pretrain) == (102, 581 + 1)
    assert plan.affordable_steps(1e-6, MANY, measured(TINY, 0.5))[:2] == (20, 20)


def test_reading_images_into_memory_takes_a_part_of_the_time() -> None:
    few = MANY._replace(images=1000, train=950)
    assert plan.affordable_steps(1, few, measured(TINY, 0.5, reading=0.5)).pretrain < 0.8 * 3420 / 0.5
    assert plan.affordable_steps(1, few, measured(TINY, 0.5)).full == 20_000
    assert plan.affordable_steps(10, MANY._replace(train=64_000), measured(TINY, 0.5)).full == 500_000
    assert plan.affordable_steps(10, MANY._replace(train=6_400), measured(TINY, 0.5)).full == 80_000


def proposal(
    survey: Survey = MANY, step: float = 0.1, reading: float = 0.0, stages: Stages = TINY, **options: Any
) -> Proposal:
    """What is proposed where every step takes `step` seconds."""
    config = PlanAhead("my photos", hours=10, **options)
    found = measured(plan.fit_recipe(stages, config, survey), step, reading)
    result = plan.propose(config, survey, "tiny", found, plan.affordable_steps(10, survey, found), CPU)
    return replace(result, commands=tuple(map(shlex.join, plan.commands(config, TINY, result))))


@pytest.mark.parametrize(
    ("result", "warning"),
    [
        (
            {"survey": MANY._replace(train=4999)},
            "4999 images to learn from: few, but not too few: 2 508 photographs of groceries",
        ),
        ({"step": 2.0}, "15100 steps: 20000 would learn more; --hours 13.8 is enough for them"),
        ({"survey": MANY._replace(shorter_side=48)}, "images of 48 pixels are enlarged to 64"),
        (
            {"survey": MANY._replace(unreadable=3)},
            "3 of 64 images looked at cannot be read: smalti check 'my photos' names all of them",
        ),
        (
            {"survey": MANY._replace(images=90_000), "reading": 0.02},
            "reading the images takes 1 hours of the time: smalt",
        ),
    ],
)
def test_what_speaks_against_it_is_said(result: dict[str, Any], warning: str) -> None:
    found = proposal(**result).warnings
    assert [line for line in found if line.startswith(warning)], found


@pytest.mark.parametrize(("train", "steps"), [(40, 2000), (2217, 2000), (100_000, 84_375)])
def test_fine_tuning_is_as_long_as_its_labels_ask_for(train: int, steps: int) -> None:
    about = plan.finetuning(tiny.finetune(), MANY._replace(train=train), 7)
    assert (about.steps, about.batch_size) == (steps, min(64, about.labels))
    words = plan.finetune_command(PlanAhead("my photos", device="cpu"), "tiny", about)
    assert words[:9] == [
        "smalti",
        "finetune",
        "tiny",
        "--data",
        "my photos",
        "--init",
        "runs/beit",
        "--out",
        "runs/classes",
    ]
    assert words[9:] == ["--plan.steps", str(steps), "--plan.batch-size", str(about.batch_size), "--device", "cpu"]


@pytest.mark.parametrize("reading", [0.0, 0.5])
def test_the_hours_that_are_said_to_be_enough_are(reading: float) -> None:
    survey = MANY._replace(images=10_000, train=9_500)
    lines = proposal(survey, step=2.0, reading=reading).warnings
    enough = next(float(line.split("--hours ")[1].split()[0]) for line in lines if "--hours" in line)
    assert plan.affordable_steps(enough, survey, measured(TINY, 2.0, reading)).pretrain >= 20_000


def test_slow_reading_of_streamed_images_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.data.load.usable_memory", lambda: 1 << 30)
    found = proposal(reading=0.01)
    assert found.streamed
    assert found.warnings == ["reading takes longer than computing, 100 images a second: smalti prepare"]
    assert proposal(reading=0.001).warnings == []


def test_nothing_speaks_against_a_good_plan() -> None:
    assert proposal().warnings == []


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that training verbs would have run."""
    seen: list[Any] = []
    for verb in ("train_tokenizer", "pretrain", "finetune"):
        module = importlib.import_module(f"smalti.runs.{verb}")
        monkeypatch.setattr(module, "main", lambda config, **_: seen.append(config) or {})
    return seen


def test_the_commands_run_what_was_measured(captured: list[Any]) -> None:
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "compile": "off", "follow_links": "all"}
    options |= {"image_column": "left", "pages": "all"}
    survey = MANY._replace(train=50)
    stages = Stages(TINY.tokenizer, replace(TINY.pretrain, plan=replace(TINY.pretrain.plan, accumulate=4)))
    result = proposal(survey, stages=stages, **options)
    for command in result.commands:
        name, *words = shlex.split(command)
        assert name == "smalti"
        assert smalti(words) == 0
    for ran, start, about in zip(captured, TINY, (result.tokenizer, result.pretrain), strict=True):
        assert (ran.data.path, ran.data.follow_links) == ("my photos", "all")
        assert (ran.data.image_column, ran.data.pages) == ("left", "all")
        assert (ran.device, ran.precision, ran.out) == ("cpu", "fp32", ran.out)
        assert (ran.plan.steps, ran.plan.batch_size) == (about.steps, 32)
        assert ran.optimiser.scaled_to(32).lr == pytest.approx(start.optimiser.lr / 2)
    tokenizer, pretrain = captured
    assert tokenizer.tokenizer.vocab_size == result.vocab_size == 64
    assert tokenizer.out == pretrain.tokenizer
    assert (pretrain.plan.accumulate, pretrain.compile) == (4, "off")


def test_the_commands_say_no_more_than_they_must() -> None:
    first, second = proposal(MANY._replace(train=10_000)).commands
    assert first == (
        "smalti train-tokenizer tiny --data 'my photos' --out runs/tokenizer --tokenizer.vocab-size 1024 "
        "--plan.steps 2000 --plan.batch-size 64"
    )
    assert second == (
        "smalti pretrain tiny --data 'my photos' --tokenizer runs/tokenizer --out runs/beit "
        "--plan.steps 125000 --plan.batch-size 64"
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images and few steps of a dry run."""
    monkeypatch.setattr(dry, "_STEPS", 3)
    monkeypatch.setattr(dry, "_IMAGES", 12)


@pytest.mark.usefixtures("quick")
def test_a_plan_for_real_images_is_commands_that_parse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], captured: list[Any]
) -> None:
    photos = pictures(tmp_path / "photos", per_class=10, side=70)
    (photos / "across" / "bad.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    assert smalti(["plan", str(photos), "--hours", "0.1", *ON_CPU, "--json"]) == 0
    *printed, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert (result["images"], result["train"], result["shorter_side"], result["unreadable"]) == (21, 19, 70, 1)
    assert (result["recipe"], result["img_size"], result["patch_size"], result["vocab_size"]) == ("tiny", 64, 8, 64)
    assert result["backbone"]["num_parameters"] > 400_000
    assert result["memory"] > 100e6
    assert result["pretrain"]["seconds_per_step"] > 0
    assert printed[-3:] == result["commands"], "the last one fine-tunes, as the images have labels"
    assert [path.name for path in tmp_path.iterdir()] == ["photos"], "a plan writes nothing"
    for command in result["commands"]:
        assert smalti(shlex.split(command)[1:]) == 0
    assert [config.plan.batch_size for config in captured[:2]] == [16, 16]
    assert len(captured) == 3


@pytest.mark.usefixtures("quick")
def test_a_plan_for_the_embedded_images_is_the_recipe_of_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert smalti(["plan", "embedded", "--hours", "0.01", *ON_CPU]) == 0
    printed = capsys.readouterr().out
    assert "images        20000, of them 20000 to learn from; shorter side 28\n" in printed
    assert "recipe        nano: 28 x 28 pixels, patches of 4\n" in printed
    assert "tokens        49 an image, of 1024\n" in printed


def test_batches_are_halved_until_they_fit_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def seconds(trainer: Any, batches: Any, compute: Compute, steps: int) -> float:
        tried.append(trainer.accumulate)
        if len(tried) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.25

    monkeypatch.setattr(dry, "seconds_per_step", seconds)
    images = replace(NANO.pretrain.data, path="embedded", limit=8).load(Log())
    run, step = dry.fitting(NANO.pretrain, images, NANO.tokenizer.tokenizer.build(), CPU, 3)
    assert (tried, run.plan.accumulate, step) == ([1, 2, 4], 4, 0.25)
    tried.clear()
    odd = replace(NANO.pretrain, plan=replace(NANO.pretrain.plan, batch_size=2, accumulate=2))
    with pytest.raises(torch.OutOfMemoryError):
        dry.fitting(odd, images, NANO.tokenizer.tokenizer.build(), CPU, 3)


def test_images_that_cannot_be_read_or_are_too_few_are_refused(tmp_path: Path) -> None:
    (flat_pictures(tmp_path / "few", count=1) / "bad.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"1 of 2 images looked at can be read; .*"):
        plan.look(open_source(str(tmp_path / "few"), 3), Log())
    (tmp_path / "few" / "bad.jpg").unlink()
    with pytest.raises(DataError, match="1 of 1 images looked at can be read; training and measuring need at least 2"):
        plan.look(open_source(str(tmp_path / "few"), 3), Log())


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["plan"], 2, "error: Missing from smalti plan: As for check"),
        (["plan", "nowhere"], 3, "error: no folder nowhere; it does not exist"),
        (["plan", "photos", "--hours", "0"], 2, "error: 0.0 hours; use more than 0"),
        (["plan", "photos", "--hour", "1"], 2, "error: unknown option '--hour'; did you mean '--hours'?"),
    ],
)
def test_wrong_plans_are_one_line(
    arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smalti(arguments) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(text)


def test_no_time_is_no_plan() -> None:
    with pytest.raises(UsageError, match=r"-1 hours; use more than 0"):
        PlanAhead("photos", hours=-1)
