"""The battery chooses on validation images alone; its figures are those of the classifiers it names."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.core.errors import UsageError
from smalti.evaluation import battery
from smalti.evaluation.battery import FEW_L2_STRENGTHS, L2_STRENGTHS, Battery, BatteryResult
from smalti.evaluation.features import Layer
from smalti.evaluation.label_draws import BUDGETS, mean_share_interval, share_interval
from smalti.evaluation.probe import Split, fit_linear, knn_accuracy, scale_of

NUM, CLASSES = 300, 3
LAYERS: tuple[Layer, ...] = ((1, "cls"), (1, "mean"), (2, "both"))
SMALL = Battery(validation=0.2, draws=2)
CHOICES = ("layer", "pooling", "l2", "knn_layer", "knn_pooling", "validation", "knn_validation")


def labels(num: int = NUM) -> Tensor:
    return torch.arange(num) % CLASSES


def features(quality: float, seed: int, num: int = NUM) -> Tensor:
    """The class, `quality` standard deviations apart, on axes of different scales."""
    rng = torch.Generator().manual_seed(seed)
    clouds = torch.randn(num, 6, generator=rng) + quality * torch.eye(CLASSES, 6)[labels(num)]
    return clouds * torch.logspace(-1, 1, 6) + 2


def by_quality(qualities: tuple[float, float, float], seed: int) -> dict[Layer, Tensor]:
    return {layer: features(quality, seed) for layer, quality in zip(LAYERS, qualities, strict=True)}


def measured(
    train: Mapping[Layer, Tensor], test: Mapping[Layer, Tensor], y: Tensor | None = None, seed: int = 0
) -> BatteryResult:
    return SMALL(train, labels() if y is None else y, test, labels(), seed)


@pytest.fixture(scope="module")
def fair() -> BatteryResult:
    """Of layers that say something, but not all."""
    return measured(by_quality((0.5, 1.0, 1.5), 0), by_quality((0.5, 1.0, 1.5), 1))


@pytest.fixture
def _two_budgets(fair: BatteryResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few labels by number and by share, where the test is not about all of them; `fair` has them all."""
    monkeypatch.setattr(battery, "BUDGETS", tuple(b for b in BUDGETS if b.name in ("10 a class", "1 %")))


def choices(result: BatteryResult) -> list[object]:
    few = [(name, one.layer, one.pooling, one.l2) for name, one in result.few.items()]
    return [*(getattr(result, name) for name in CHOICES), few]


def test_separable_features_give_100_percent() -> None:
    result = measured({LAYERS[0]: features(40, 0)}, {LAYERS[0]: features(40, 1)})
    assert (result.linear, result.knn) == (1.0, 1.0)
    assert all(few.accuracy > (0.95 if few.labels > CLASSES else 0.8) for few in result.few.values())


def test_shuffled_labels_give_chance_within_binomial_bounds() -> None:
    """Of good features: whatever leaked from test or validation images would show as more than chance."""
    rng = torch.Generator().manual_seed(5)
    mixed = labels()[torch.randperm(NUM, generator=rng)]
    result = measured(by_quality((1, 4, 40), 0), by_quality((1, 4, 40), 1), mixed)
    bound = 4 * math.sqrt(1 / 3 * 2 / 3 / NUM)
    assert abs(result.linear - 1 / 3) < bound
    assert abs(result.knn - 1 / 3) < bound
    draws = [few.accuracy for few in result.few.values()]  # one is right for each class or for none
    assert abs(sum(draws) / len(draws) - 1 / 3) < 0.25


def test_noise_gives_chance_within_binomial_bounds() -> None:
    result = measured(by_quality((0, 0, 0), 0), by_quality((0, 0, 0), 1))
    for accuracy in (result.linear, result.knn, *(few.accuracy for few in result.few.values())):
        assert abs(accuracy - 1 / 3) < 4 * math.sqrt(1 / 3 * 2 / 3 / NUM)


@pytest.mark.usefixtures("_two_budgets")
def test_the_layer_is_the_best_on_validation_not_the_best_on_test() -> None:
    train = by_quality((1.5, 30, 1.5), 0)
    test = {LAYERS[0]: features(30, 3), LAYERS[1]: features(0, 1), LAYERS[2]: features(30, 4)}
    result = measured(train, test)
    assert (result.layer, result.pooling) == (result.knn_layer, result.knn_pooling) == LAYERS[1]
    assert {(few.layer, few.pooling) for few in result.few.values()} == {LAYERS[1]}
    assert max(result.linear, result.knn, *(few.accuracy for few in result.few.values())) < 0.6


def test_neither_test_images_nor_test_labels_change_a_choice(fair: BatteryResult) -> None:
    train, test = by_quality((0.5, 1.0, 1.5), 0), by_quality((0.5, 1.0, 1.5), 1)
    plain = fair
    wrong_labels = SMALL(train, labels(), test, (labels() + 1) % CLASSES, 0)
    other_images = SMALL(train, labels(), by_quality((40, 0, 0), 2), labels(), 0)
    assert choices(plain) == choices(wrong_labels) == choices(other_images)
    assert plain.linear > 0.5 > wrong_labels.linear
    assert plain.knn > 0.5 > wrong_labels.knn


class Counted(dict[Layer, Tensor]):
    """Features that note which layers are asked for."""

    def __init__(self, of: Mapping[Layer, Tensor]) -> None:
        super().__init__(of)
        self.asked: list[Layer] = []

    def __getitem__(self, layer: Layer) -> Tensor:
        self.asked.append(layer)
        return super().__getitem__(layer)


@pytest.mark.usefixtures("_two_budgets")
def test_test_features_are_looked_at_once_a_figure_and_only_of_the_layer_that_was_chosen() -> None:
    test = Counted(by_quality((1, 2, 3), 1))
    result = measured(by_quality((1, 2, 3), 0), test)
    chosen = [(result.layer, result.pooling), (result.knn_layer, result.knn_pooling)]
    chosen += [(few.layer, few.pooling) for name, few in result.few.items() if name != "100 %"]
    assert LAYERS[0] not in chosen  # the checker of annotations looks at the first item of a mapping
    assert sorted(layer for layer in test.asked if layer != LAYERS[0]) == sorted(chosen)


@pytest.mark.usefixtures("_two_budgets")
def test_validation_images_are_not_fitted_on() -> None:
    """Validation images with wrong labels spoil the scores of the choice, not the classifier."""
    split, spoiled = Split.of(NUM, 0.2, seed=0), labels()
    spoiled[split.validation] = (spoiled[split.validation] + 1) % CLASSES
    result = measured({LAYERS[0]: features(30, 0)}, {LAYERS[0]: features(30, 1)}, spoiled)
    assert result.validation == result.knn_validation == {"1 cls": 0.0}
    assert (result.linear, result.knn) == (1.0, 1.0)


def test_the_figures_are_those_of_the_classifiers_named(fair: BatteryResult) -> None:
    train, test = by_quality((0.5, 1.0, 1.5), 0), by_quality((0.5, 1.0, 1.5), 1)
    split = Split.of(NUM, 0.2, seed=0)
    layer, knn_layer = (fair.layer, fair.pooling), (fair.knn_layer, fair.knn_pooling)
    fit_y = labels()[split.fit]
    probe = fit_linear(train[layer][split.fit], fit_y, fair.l2, max_iter=1000)
    assert probe.accuracy(test[layer], labels()) == pytest.approx(fair.linear, abs=1 / NUM)
    knn = knn_accuracy(train[knn_layer][split.fit], fit_y, test[knn_layer], labels(), 20)
    assert knn == fair.knn
    assert fair.linear_interval == share_interval(fair.linear, NUM)
    assert fair.knn_interval == share_interval(knn, NUM)
    assert (fair.fit_images, fair.validation_images, fair.test_images) == (240, 60, NUM)


def test_few_labels_are_the_mean_over_draws_in_the_units_of_all_images() -> None:
    train, test = {LAYERS[0]: features(1.5, 0)}, {LAYERS[0]: features(1.5, 1)}
    result, split = measured(train, test), Split.of(NUM, 0.2, seed=0)
    x, scale = train[LAYERS[0]], scale_of(train[LAYERS[0]][split.fit])
    for budget in BUDGETS:
        few, accuracies = result.few[budget.name], []
        for number in range(2):
            drawn = budget.draw(labels(), split.fit, 0, number)
            probe = fit_linear(x[drawn], labels()[drawn], few.l2, scale=scale, max_iter=1000)
            accuracies.append(probe.accuracy(test[LAYERS[0]], labels()))
        assert few.accuracy == pytest.approx(sum(accuracies) / 2, abs=0.005)
        assert few.interval == pytest.approx(mean_share_interval(accuracies), abs=0.03)
        assert (few.labels, few.draws) == (len(drawn), 2)
        assert few.l2 in FEW_L2_STRENGTHS


def test_more_labels_are_worth_more() -> None:
    train, test = {LAYERS[0]: features(1.5, 0)}, {LAYERS[0]: features(1.5, 1)}
    few = Battery(validation=0.2, draws=4)(train, labels(), test, labels()).few
    accuracies = [few[name].accuracy for name in ("1 a class", "10 a class", "100 %")]
    assert accuracies == sorted(accuracies)
    assert accuracies[0] + 0.1 < accuracies[-1]
    assert few["100 %"] == dataclasses.replace(few["100 %"], draws=1, interval=None, labels=240)


def test_every_layer_has_its_validation_scores_and_the_best_is_chosen(fair: BatteryResult) -> None:
    for scores, chosen in (
        (fair.validation, (fair.layer, fair.pooling)),
        (fair.knn_validation, (fair.knn_layer, fair.knn_pooling)),
    ):
        assert set(scores) == {"1 cls", "1 mean", "2 both"}
        assert max(scores, key=lambda name: scores[name]) == "{} {}".format(*chosen)
    assert fair.l2 in L2_STRENGTHS


def test_the_same_seed_gives_the_same_result_and_another_one_another_split(fair: BatteryResult) -> None:
    train, test = by_quality((0.5, 1.0, 1.5), 0), by_quality((0.5, 1.0, 1.5), 1)
    one, again, other = fair, measured(train, test), measured(train, test, seed=1)
    assert one == again
    assert one.validation != other.validation
    assert (one.seed, other.seed) == (0, 1)


@pytest.mark.parametrize("num", [6, 9, 15])
def test_a_handful_of_images_can_be_measured(num: int) -> None:
    train = {LAYERS[0]: features(30, 0, num)}
    result = Battery(draws=2)(train, labels(num), train, labels(num))
    assert 0 <= result.linear <= 1
    assert all(few.labels < result.fit_images or name == "100 %" for name, few in result.few.items())


@pytest.mark.usefixtures("_two_budgets")
def test_a_rare_class_and_a_class_that_only_the_test_images_have() -> None:
    rare = torch.zeros(60, dtype=torch.int64)
    rare[[3, 30]] = 1
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) + 30 * rare[:, None]
    test_labels = torch.where(torch.arange(60) == 7, 2, rare)
    result = SMALL({LAYERS[0]: x}, rare, {LAYERS[0]: x}, test_labels)
    assert result.linear <= 59 / 60
    assert result.knn <= 59 / 60


def test_a_result_is_plain_json_and_a_short_table(fair: BatteryResult) -> None:
    plain = json.loads(json.dumps(fair.as_dict()))
    assert plain["linear"] == fair.linear
    assert plain["few"]["1 %"]["accuracy"] == fair.few["1 %"].accuracy
    lines = fair.describe().splitlines()
    low, high = fair.linear_interval
    assert [line.split()[0] for line in lines] == ["frozen", "k-NN", "linear", "1", "5", "10", "1", "10"]
    assert lines[2].split()[2:6] == ["240", f"{fair.linear:.1%}", f"{low:.1%}", f"{high:.1%}"]
    assert lines[2].endswith(f"   {fair.layer} ({fair.pooling})")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("poolings", (), "no pooling; use at least one of cls, mean, both, 2x2"),
        ("validation", 1.0, "a validation share of 1.0; choose one between 0 and 1"),
        ("k", 0, "k is 0; use at least 1"),
        ("draws", 0, "draws is 0; use at least 1"),
        ("selection_images", 0, "selection_images is 0; use at least 1"),
    ],
)
def test_a_battery_that_makes_no_sense(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(Battery(), **{field: value})
