"""The studies of pretraining: every kind of cell runs once, is read from its file, and its page shows it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.small_runs import pictures

from smalti.core.compute import Compute
from smalti.data.load import Data
from smalti.evaluation.battery import Battery
from smalti.models.vit import ViT
from smalti.runs.train_tokenizer import main as train_tokenizer
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.simple import KMeansPatches

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Tree = dict[str, dict[str, dict[str, Any]]]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("study")


@pytest.fixture
def run(shared: ModuleType) -> Callable[..., Any]:
    return import_module("cells").run


@pytest.fixture
def results(shared: ModuleType) -> Any:
    return import_module("results").Results


@pytest.fixture
def small(shared: ModuleType, tmp_path: Path) -> Callable[[str], tuple[Any, list[str]]]:
    """A study with a tiny network and one step a run, images for it, and the options that it needs."""

    def small(name: str) -> tuple[Any, list[str]]:
        study = import_module(f"study_{name}").STUDY
        row = replace(study.rows["dvae-random"], images=128)
        for part, count in (("train", 70), ("val", 6), ("test", 4)):
            pictures(tmp_path / "images" / part, per_class=count, side=48)
        side, stride = study.backbone.img_size[0], study.backbone.patch_size
        train_tokenizer(
            TrainTokenizer(
                Data(path=str(tmp_path / "images" / "train"), channels=3, side=side),
                out=str(tmp_path / "tokenizers" / row.tokenizer),
                tokenizer=KMeansPatches(vocab_size=4, stride=stride, in_chans=3),
            )
        )
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "README.md").write_text("before\n<!-- table:begin -->\n<!-- table:end -->\nafter\n")
        tiny = replace(
            study,
            rows={"random": shared.Row(), "dvae-random": row},
            backbone=replace(study.backbone, embed_dim=16, depth=2, num_heads=2),
            few_steps=1,
            steps=1,
            protocol=Battery(poolings=("mean",), draws=2),
        )
        options = [f"--{name}", str(tmp_path / "images"), "--tokenizers", str(tmp_path / "tokenizers")]
        return tiny, [*options, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results")]

    return small


@pytest.mark.slow
@pytest.mark.parametrize(("name", "validation"), [("cifar10", 7), ("grocery", 12)])
def test_every_kind_of_cell_is_run_once_and_shown(
    name: str,
    validation: int,
    run: Callable[..., Any],
    small: Callable[[str], tuple[Any, list[str]]],
    tmp_path: Path,
) -> None:
    study, options = small(name)
    run(study, None, [*options, "--row", "random", "--cell", "probe", "--cell", "finetune-1pct-0"])
    results = run(study, None, [*options, "--row", "dvae-random"])
    found: Tree = results.finished
    assert {row: sorted(cells) for row, cells in found.items()} == {
        "random": ["finetune-1pct-0", "probe"],
        "dvae-random": ["finetune-10pct-0", "pretrain", "probe"],
    }
    fine_tuned = found["random"]["finetune-1pct-0"]
    sizes = {key: fine_tuned[f"{key}_images"] for key in ("train", "validation", "test")}
    assert sizes == {"train": 2, "validation": validation, "test": 8}
    assert found["dvae-random"]["pretrain"]["steps"] == found["dvae-random"]["finetune-10pct-0"]["steps"] == 1
    probes = [probe["test_images"] for cells in found.values() for probe in cells["probe"]["seeds"].values()]
    assert probes == [8] * 6

    logs = {str(path.relative_to(tmp_path / "results")): path for path in (tmp_path / "results").rglob("*.jsonl")}
    runs = ["random/finetune-1pct-0", "dvae-random/finetune-10pct-0", "dvae-random/pretrain"]
    assert sorted(logs) == sorted(f"{run}.jsonl" for run in runs)
    assert json.loads(logs["dvae-random/pretrain.jsonl"].read_text().splitlines()[-1])["step"] == 1
    config = found["dvae-random"]["finetune-10pct-0"]["config"]
    assert (config["init"], config["data"]["path"]) == ("runs/dvae-random/pretrain", f"{name}/train")
    assert str(tmp_path) not in json.dumps(config)

    page = (tmp_path / "results" / "README.md").read_text()
    assert page == f"before\n<!-- table:begin -->\n{results.table()}\n<!-- table:end -->\nafter\n"

    cut_off = tmp_path / "results" / "dvae-random" / "finetune-10pct-0.json"
    before = json.loads(cut_off.read_text())
    cut_off.unlink()
    again: Tree = run(study, None, [*options, "--row", "dvae-random"]).finished
    after = again["dvae-random"].pop("finetune-10pct-0")
    found["dvae-random"].pop("finetune-10pct-0")
    assert again == found
    assert (before["resumed"], after["resumed"]) == (False, True)
    assert after["test_accuracy"] == before["test_accuracy"]

    shutil.rmtree(tmp_path / "runs")
    cut_off.unlink()
    anew = run(study, None, [*options, "--row", "dvae-random"]).finished["dvae-random"]["finetune-10pct-0"]
    assert (anew["resumed"], anew["test_accuracy"]) == (False, before["test_accuracy"])


def test_a_cell_shows_names_for_places_whatever_these_are_called(
    shared: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shared, "pretrain", lambda config, **_: {"steps": config.plan.steps})
    study = import_module("study_cifar10").STUDY
    configs = []
    for folders in (("data", "auto", "."), ("/elsewhere/images", "/elsewhere/tokenizers", "/elsewhere/runs")):
        places = shared.DataFiles(*map(Path, folders))
        found = study.cells("dvae-random", places)["pretrain"](Compute(torch.device("cpu"), torch.float32))
        assert (found["steps"], found["resumed"]) == (2344, False)
        configs.append(found["config"])
    assert configs[0] == configs[1]
    assert configs[0]["data"]["path"] == "cifar10/train"
    assert (configs[0]["tokenizer"], configs[0]["out"]) == ("tokenizers/dvae-1024", "runs/dvae-random/pretrain")


def test_a_table_has_means_over_seeds_and_a_dash_where_nothing_has_ended(shared: ModuleType, results: Any) -> None:
    few = {"5 a class": {"accuracy": 0.25}}
    study = shared.Study("images", {"random": shared.Row(), "other": shared.Row()}, ViT())
    seeds = {str(seed): {"knn": 0.2 + seed / 10, "linear": 0.5, "few": few} for seed in range(3)}
    row = {
        "probe": {"seeds": seeds},
        "finetune-1pct-0": {"test_accuracy": 0.1},
        "finetune-1pct-2": {"test_accuracy": 0.3},
    }
    lines = results(study, {"random": row}).table().splitlines()
    assert lines[0] == (
        "|  | images | k-NN | linear | linear, 5 a class | linear, 10 a class | 1 % of labels | 10 % | 100 % |"
    )
    assert lines[2:] == ["| random | 0 | 30.0 | 50.0 | 25.0 | - | 20.0 | - | - |", "| other | 0" + 7 * " | -" + " |"]


def test_rows_are_drawn_by_labels_and_by_images_as_far_as_they_are_measured(results: Any) -> None:
    cifar10 = import_module("study_cifar10")

    def row(few: float, more: float | None = None) -> dict[str, Any]:
        cells = {"finetune-1pct-0": few, "finetune-10pct-0": more}
        return {label: {"test_accuracy": accuracy} for label, accuracy in cells.items() if accuracy is not None}

    finished = {"random": row(0.25, 0.5), "dvae-random": row(0.375, 0.75), "vq-blockwise": row(0.5)}
    found = results(cifar10.STUDY, finished)
    assert found.by_labels() == {"random": {1: 25.0, 10: 50.0}, "dvae-random": {1: 37.5, 10: 75.0}}
    assert list(found.plots()) == ["labels.svg"]
    assert cifar10.slopes(found) == {}

    finished |= {"dvae-random-75000": row(0.0, 0.5), "dvae-blockwise": row(0.0, 1.0)}
    found = results(cifar10.STUDY, finished)
    assert found.by_images() == {"10 % of labels": {300_000: 75.0, 75_000: 50.0}}
    assert cifar10.slopes(found) == pytest.approx({"10 % of labels": 12.5})
    plots = found.plots()
    assert list(plots) == ["labels.svg", "images.svg"]
    assert all(f">{name}</text>" in plots["labels.svg"] for name in ("random", "dvae-random", "1", "10"))
    assert all(f">{name}</text>" in plots["images.svg"] for name in ("10 % of labels", "75,000", "300,000"))
    assert plots == found.plots()


def test_the_best_row_is_chosen_on_validation_images_and_among_equals(results: Any, tmp_path: Path) -> None:
    study = import_module("study_cifar10").STUDY

    def keep(row: str, validated: float, linear: float) -> None:
        probe = {"seeds": {"0": {"validation": {"1 cls": validated}, "knn": 0.3, "linear": linear, "few": {}}}}
        (tmp_path / row).mkdir()
        (tmp_path / row / "probe.json").write_text(json.dumps(probe))
        results.read(study, tmp_path).write(tmp_path)

    keep("random", 0.9, 0.9)
    keep("dvae-random-37500", 0.8, 0.8)
    assert not (tmp_path / "summary.json").exists()
    keep("vq-blockwise", 0.6, 0.5)
    keep("pixels-random", 0.5, 0.7)
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "best": {"row": "vq-blockwise", "knn": 0.3, "linear": 0.5},
        "scratch": {"row": "random", "knn": 0.3, "linear": 0.9},
        "longest": {"row": "vq-blockwise", "knn": 0.3, "linear": 0.5},
    }
    keep("dvae-hidden-60-1200000", 0.7, 0.8)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [summary[role]["row"] for role in ("best", "longest")] == ["vq-blockwise", "dvae-hidden-60-1200000"]


def test_a_row_that_is_not_compared_is_fine_tuned_with_a_tenth_of_the_labels(
    tmp_path: Path, shared: ModuleType
) -> None:
    study, places = import_module("study_cifar10").STUDY, shared.DataFiles(tmp_path, tmp_path, tmp_path)
    assert list(study.cells("dvae-hidden-60", places)) == ["pretrain", "probe", "finetune-10pct-0"]
    assert len(study.cells("dvae-random", places)) == 7


def test_without_images_a_study_says_what_it_needs(
    shared: ModuleType, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    study = shared.Study("images", {}, ViT())
    with pytest.raises(SystemExit):
        run(study, None, [])
    assert "--images and --tokenizers are required, or --page" in capsys.readouterr().err


def test_the_second_domain_differs_in_images_and_tokenizer_alone(shared: ModuleType, tmp_path: Path) -> None:
    first, second = (import_module(f"study_{name}").STUDY for name in ("cifar10", "grocery"))
    assert set(second.rows) == {"random", "dvae-random", "muon-visible-kmeans-75"}
    for name, row in second.rows.items():
        assert replace(row, tokenizer=first.rows[name].tokenizer) == first.rows[name]
    same = replace(second, name=first.name, rows=first.rows, backbone=first.backbone, validation="", curve=first.curve)
    assert same == first
    assert first.backbone.grid == second.backbone.grid == (8, 8)
    assert replace(second.backbone, img_size=(32, 32), patch_size=4) == first.backbone
