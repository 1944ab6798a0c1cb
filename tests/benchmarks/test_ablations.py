"""Variations of pretraining and the comparison at equal time: cells run once, and their means are of what is there."""

import json
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.small_runs import CPU, pictures
from tests.test_documentation import blocks_of, commands_of

from smalti.cli import main
from smalti.core.compute import choose_compute
from smalti.core.log import Log
from smalti.models.decoder import CrossAttention
from smalti.training.targets import Pixels

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def ablations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("ablations_cifar10")


@pytest.fixture
def equal_time(ablations: ModuleType) -> ModuleType:
    pytest.importorskip("lightly")
    return import_module("equal_time")


def test_the_command_of_the_page_has_the_best_setting(
    ablations: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = BENCHMARKS.parent / "docs" / "results" / "cifar10" / "equal_time" / "README.md"
    commands = [words[1:] for block in blocks_of(page.read_text()) for words in commands_of(block)]
    seen: list[Any] = []
    monkeypatch.setattr("smalti.runs.pretrain.main", lambda config, **_: seen.append(config) or {})
    assert main(next(words for words in commands if words[0] == "pretrain")) == 0
    [asked] = seen
    places = ablations.DataFiles(tmp_path, tmp_path, tmp_path)
    best = ablations.BEST.pretraining(tmp_path, places, asked.plan.steps * asked.plan.batch_size)
    plan = replace(best.plan, log_every=asked.plan.log_every, save_every=asked.plan.save_every)
    data = replace(best.data, path=asked.data.path)
    best = replace(best, out=asked.out, tokenizer=asked.tokenizer, data=data, plan=plan, reference=asked.reference)
    assert asked == best


def test_a_variation_is_pretrained_and_measured_once(
    ablations: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for part, count in (("train", 70), ("test", 4)):
        pictures(tmp_path / "images" / part, per_class=count, side=32)
    tokenizer = ["--data", str(tmp_path / "images" / "train"), "--out", str(tmp_path / "kmeans-1024")]
    small = ["--tokenizer.vocab-size", "8", "--tokenizer.stride", "4", "--tokenizer.in-chans", "3"]
    assert (
        main(["train-tokenizer", "kmeans", *CPU, *small, "--data.side", "32", "--data.channels", "3", *tokenizer]) == 0
    )
    backbone = replace(ablations.STUDY.backbone, embed_dim=16, depth=2, num_heads=2)
    monkeypatch.setattr(ablations, "STUDY", replace(ablations.STUDY, backbone=backbone))
    monkeypatch.setattr(ablations, "IMAGES", 128)
    places = ablations.DataFiles(tmp_path / "images", tmp_path, tmp_path)
    images, compute = ablations.STUDY.data(places).load(Log()), choose_compute("cpu", "fp32")
    variation = ablations.Variation(masks_per_image=2, decoder=CrossAttention(predicted=0.5))
    measured = 0

    def measure() -> dict[str, Any]:
        nonlocal measured
        measured += 1
        return dict(ablations.run(variation, tmp_path / "run", places, compute, images))

    for _ in range(2):
        ablations.keep(tmp_path / "out", "visible", measure)
    assert measured == 1
    found = ablations.finished(tmp_path / "out", ablations.VARIATIONS)
    assert list(found) == ["visible"]
    assert found["visible"]["variation"]["masks_per_image"] == 2
    table = ablations.table(found).splitlines()
    assert len(table) == 3
    assert table[-1].startswith(f"| visible | {100 * found['visible']['frozen']['knn']:.1f} | ")
    of_pixels = ablations.Variation(target=Pixels(), tokenizer="")
    assert ablations.run(of_pixels, tmp_path / "pixels", places, compute, images)["pixel_loss"] > 0


def test_every_variation_has_a_name_for_a_file_and_differs_from_the_others(ablations: ModuleType) -> None:
    variations = ablations.VARIATIONS
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz-0123456789") for name in variations)
    assert len(set(variations.values())) == len(variations)


def test_a_budget_becomes_steps_and_ours_pays_for_its_tokenizer(equal_time: ModuleType) -> None:
    seconds = {"ours": 0.25, "mae": 0.2, "simmim": 0.5}
    assert equal_time.steps_in(100 + equal_time.TOKENIZER_SECONDS, "ours", seconds) == 400
    assert equal_time.steps_in(100, "mae", seconds) == 500
    assert equal_time.steps_in(100, "simmim", seconds) == 200


def test_means_are_of_the_seeds_that_have_ended(equal_time: ModuleType, tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.5, 0.7)):
        cell = {"linear": accuracy, "knn": accuracy, "seed": seed}
        (tmp_path / f"816-mae-{seed}.json").write_text(json.dumps(cell))
    (tmp_path / "816-mae-adamw-0.json").write_text(json.dumps({"linear": 0.9, "knn": 0.9, "seed": 0}))
    (tmp_path / "816-mae-1-10.json").write_text(json.dumps({"finetune_10pct": 0.4, "seed": 1}))
    found = equal_time.collected(tmp_path)
    assert list(found) == ["816"]
    assert list(found["816"]) == ["mae", "mae-adamw"]
    assert found["816"]["mae-adamw"]["values"]["linear"] == [0.9]
    assert found["816"]["mae"]["seeds"] == [0, 1]
    assert found["816"]["mae"]["knn"] == pytest.approx(0.6)
    low, high = found["816"]["mae"]["intervals"]["knn"]
    assert low < 0.6 < high
    assert found["816"]["mae"]["finetune_10pct"] == 0.4
    assert found["816"]["mae"]["values"]["finetune_10pct"] == [0.4]
    assert "finetune_1pct" not in found["816"]["mae"]


def test_the_rate_of_fine_tuning_is_chosen_on_validation_images_among_those_of_all_seeds(
    equal_time: ModuleType, tmp_path: Path
) -> None:
    tried = {0.001: ((0.50, 0.61), (0.52, 0.61)), 0.002: ((0.54, 0.60), (0.54, 0.60)), 0.004: ((0.9, 0.9),)}
    for lr, found in tried.items():
        for seed, (validation, accuracy) in enumerate(found):
            cell = {"finetune_10pct": accuracy, "validation": validation, "lr": lr, "seed": seed}
            (tmp_path / f"816-ours-{seed}-10{equal_time.suffix(lr)}.json").write_text(json.dumps(cell))
    row = equal_time.collected(tmp_path)["816"]["ours"]
    assert (row["finetune_10pct"], row["values"], row["lr"]) == (
        pytest.approx(0.6),
        {"finetune_10pct": [0.6, 0.6]},
        {"finetune_10pct": 0.002},
    )


@pytest.mark.docs
def test_the_table_of_equal_time_is_that_of_the_files(equal_time: ModuleType) -> None:
    page = (equal_time.HOME / "README.md").read_text()
    shown = page.partition("<!-- table:begin -->\n")[2].partition("<!-- table:end -->")[0].strip()
    assert shown == equal_time.table(equal_time.HOME)
    kept = json.loads(equal_time.HOME.with_suffix(".json").read_text())
    assert kept == json.loads(json.dumps(equal_time.collected(equal_time.HOME)))


@pytest.fixture
def time_to_accuracy(equal_time: ModuleType) -> ModuleType:
    return import_module("time_to_accuracy")


def test_an_accuracy_is_reached_between_two_points(time_to_accuracy: ModuleType) -> None:
    curve = {400: 0.60, 100: 0.50, 1600: 0.64}
    assert time_to_accuracy.seconds_until(0.55, curve) == pytest.approx(200)  # half way, in the logarithm
    assert time_to_accuracy.seconds_until(0.60, curve) == pytest.approx(400)
    assert time_to_accuracy.seconds_until(0.62, curve) == pytest.approx(800)
    assert time_to_accuracy.seconds_until(0.65, curve) is None
    assert time_to_accuracy.seconds_until(0.45, curve) is None


def test_the_ratio_of_times_is_that_of_the_curves(time_to_accuracy: ModuleType, tmp_path: Path) -> None:
    for budget, method, seed, linear in (
        *((400, "ours", 0, 0.60), (400, "ours", 1, 0.62), (1600, "ours", 0, 0.63)),
        *((400, "mae", 0, 0.59), (1600, "mae", 0, 0.62), (400, "simmim", 0, 0.9)),
    ):
        folder = tmp_path / ("a" if budget == 400 else "b")
        folder.mkdir(exist_ok=True)
        (folder / f"{budget}-{method}-{seed}.json").write_text(json.dumps({"linear": linear}))
    found = time_to_accuracy.collected(tmp_path / "a", tmp_path / "b")
    assert found["curves"]["ours"] == pytest.approx({400: 0.61, 1600: 0.63})
    assert found["seconds"] == pytest.approx({"ours": 800, "mae": 1600})
    assert found["seconds_ratio_vs_mae"] == pytest.approx(0.5)
    assert found["seeds"]["ours"] == {400: 2, 1600: 1}
    time_to_accuracy.write(tmp_path / "out", found)
    assert json.loads((tmp_path / "out.json").read_text())["seconds_ratio_vs_mae"] == pytest.approx(0.5)
    assert "MAE (lightly)" in (tmp_path / "out.svg").read_text()
    assert time_to_accuracy.collected(tmp_path)["seconds_ratio_vs_mae"] is None


@pytest.mark.docs
def test_the_table_of_the_page_is_that_of_the_files(ablations: ModuleType) -> None:
    page = (ablations.HOME / "README.md").read_text()
    shown = page.partition("<!-- table:begin -->\n")[2].partition("<!-- table:end -->")[0].strip()
    assert shown == ablations.table(ablations.all_finished(ablations.HOME))


@pytest.fixture
def second_round(ablations: ModuleType) -> ModuleType:
    return import_module("second_round")


COSTS = {"pixels": 1.0, "features": 1.5, "features-masks": 1.2, "vqkd": 1.25, "aggregated": 1.6}
COSTS |= {"features-aggregated": 2.0, "training-vqkd": 2.5, "fitting-features": 100.0}


def test_every_way_costs_the_same(second_round: ModuleType) -> None:
    for budget, (name, way) in product(second_round.BUDGETS.values(), second_round.WAYS.items()):
        steps, vqkd_steps = second_round.planned(name, budget, COSTS)
        step = COSTS[name.replace("-go-on", "").replace("one-round", "pixels")]
        spent = steps * step + vqkd_steps * COSTS["training-vqkd"]
        spent += budget.first if way.tokens != "pixels" else 0
        spent += COSTS["fitting-features"] if way.tokens == "features" else 0
        assert spent == pytest.approx(budget.total, abs=3)
        assert (vqkd_steps > 0) == (way.tokens == "vqkd")


@pytest.mark.slow
def test_ways_are_run_and_shown(
    second_round: ModuleType, ablations: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for part, count in (("train", 70), ("test", 4)):
        pictures(tmp_path / "images" / part, per_class=count, side=32)
    tokenizer = ["--data", str(tmp_path / "images" / "train"), "--out", str(tmp_path / ablations.BEST.tokenizer)]
    small = ["--tokenizer.vocab-size", "8", "--tokenizer.stride", "4", "--tokenizer.in-chans", "3"]
    assert (
        main(["train-tokenizer", "kmeans", *CPU, *small, "--data.side", "32", "--data.channels", "3", *tokenizer]) == 0
    )
    backbone = replace(ablations.STUDY.backbone, embed_dim=16, depth=2, num_heads=2)
    study = replace(ablations.STUDY, backbone=backbone, protocol=replace(ablations.PROTOCOL, selection_images=20))
    for module in (ablations, second_round):
        monkeypatch.setattr(module, "STUDY", study)
    aggregation = replace(second_round.WAYS["aggregated"].aggregation, depth=1, layer=1)
    ways = {name: second_round.WAYS[name] for name in ("features-go-on-masks", "vqkd")}
    ways["aggregated"] = replace(second_round.WAYS["aggregated"], aggregation=aggregation)
    monkeypatch.setattr(second_round, "WAYS", ways)
    for name, value in {"CODES": 8, "VQKD_SHARE": 0.5, "FIT_IMAGES": 40}.items():
        monkeypatch.setattr(second_round, name, value)
    places = ablations.DataFiles(tmp_path / "images", tmp_path, tmp_path / "runs")
    images, compute = study.data(places).load(Log()), choose_compute("cpu", "fp32")
    budget = second_round.Budget(ablations.BEST, total=10, first=2)
    cells = second_round.Study("3600-0", budget, 0, places, images, compute)
    monkeypatch.setattr(second_round, "TIMED", second_round.TIMED | {"aggregated": ways["aggregated"]})
    costs = {"features-masks": 4.0, "vqkd": 1.0, "aggregated": 4.0, "training-vqkd": 2.0, "fitting-features": 2.0}
    for name in ways:
        ablations.keep(tmp_path / "out", f"3600-{name}-0", lambda name=name: cells.measured(name, costs))
    found = second_round.collected(tmp_path / "out")["3600"]
    assert set(found) == set(ways)
    assert all(row["seeds"] == [0] for row in found.values())
    assert len(second_round.table(tmp_path / "out").splitlines()) == 5


@pytest.mark.docs
def test_the_table_of_second_rounds_is_that_of_the_files(second_round: ModuleType) -> None:
    page = (second_round.HOME / "README.md").read_text()
    shown = page.partition("<!-- table:begin -->\n")[2].partition("<!-- table:end -->")[0].strip()
    assert shown == second_round.table(second_round.HOME)
    assert json.loads(second_round.HOME.with_suffix(".json").read_text()) == second_round.collected(second_round.HOME)
