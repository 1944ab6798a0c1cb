"""The probe chooses on validation images alone, and measures on test images once."""

import dataclasses

import pytest
import torch

from smalti.core.compute import choose_compute
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import TrainingData
from smalti.evaluation.features import Layer, resized
from smalti.evaluation.probe import LinearProbe, Split, probe, probe_backbone
from smalti.models.vit import ViT

NUM, CLASSES = 300, 3


def labels(num: int = NUM) -> torch.Tensor:
    return torch.arange(num) % CLASSES


def features(quality: float, seed: int, num: int = NUM) -> torch.Tensor:
    """The class, `quality` standard deviations apart."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(num, 6, generator=rng) + quality * torch.eye(CLASSES, 6)[labels(num)]


SPLIT = Split.of(NUM, 0.2, seed=0)
LAYERS: tuple[Layer, ...] = ((1, "cls"), (1, "mean"), (2, "2x2"))


def test_a_split_parts_the_images_by_share_and_seed() -> None:
    split = Split.of(100, 0.1, seed=0)
    assert len(split.validation) == 10
    assert sorted(split.fit.tolist() + split.validation.tolist()) == list(range(100))
    assert torch.equal(split.fit, Split.of(100, 0.1, seed=0).fit)
    assert not torch.equal(split.validation, Split.of(100, 0.1, seed=1).validation)
    assert len(Split.of(4, 0.01, seed=0).validation) == 1
    for share in (0.01, 0.99):
        assert len(Split.of(2, share, seed=0).fit) == len(Split.of(2, share, seed=0).validation) == 1


def test_separable_features_give_100_percent() -> None:
    train, test = {(1, "cls"): features(40, 0)}, {(1, "cls"): features(40, 1)}
    result = probe(train, labels(), test, labels(), SPLIT)
    assert (result.linear, result.knn) == (1.0, 1.0)
    assert result.linear_few > 0.5  # one label a class


def test_noise_gives_chance() -> None:
    train, test = {(1, "cls"): features(0, 0)}, {(1, "cls"): features(0, 1)}
    result = probe(train, labels(), test, labels(), SPLIT)
    for accuracy in (result.linear, result.knn, result.linear_few):
        assert accuracy == pytest.approx(1 / 3, abs=0.12)


def test_the_layer_is_the_best_on_validation_not_the_best_on_test() -> None:
    """A layer that is good on validation and useless on test must be chosen, and its poor test accuracy reported."""
    good, useless, fair = features(30, 0), features(0, 1), features(1.5, 2)
    train = {LAYERS[0]: fair, LAYERS[1]: good, LAYERS[2]: fair.flip(1)}
    test = {LAYERS[0]: features(30, 3), LAYERS[1]: useless, LAYERS[2]: features(30, 4)}
    result = probe(train, labels(), test, labels(), SPLIT)
    assert (result.layer, result.pooling) == LAYERS[1]
    assert (result.knn_layer, result.knn_pooling) == LAYERS[1]
    assert result.linear < 0.6
    assert result.knn < 0.6


def test_choices_do_not_depend_on_the_test_images() -> None:
    train = {layer: features(quality, 0) for layer, quality in zip(LAYERS, (0.5, 1.0, 2.0), strict=True)}
    results = [
        probe(train, labels(), {layer: features(quality, 9) for layer in LAYERS}, labels(), SPLIT)
        for quality in (0.0, 40.0)
    ]
    for name in ("layer", "pooling", "knn_layer", "knn_pooling", "validation"):
        assert getattr(results[0], name) == getattr(results[1], name)
    assert results[0].linear < results[1].linear


def test_validation_images_are_not_fitted_on() -> None:
    """Validation images with wrong labels, four of five, spoil the scores of the choice, not the classifier."""
    spoiled, split = labels().clone(), Split.of(NUM, 0.8, seed=0)
    spoiled[split.validation] = (spoiled[split.validation] + 1) % CLASSES
    train, test = {(1, "cls"): features(30, 0)}, {(1, "cls"): features(30, 1)}
    result = probe(train, spoiled, test, labels(), split)
    assert result.validation == {"1 cls": 0.0}
    assert (result.linear, result.knn) == (1.0, 1.0)


def test_the_regularisation_is_the_best_on_validation_and_few_labels_are_drawn_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weakest one is right on the test images alone."""
    fitted: list[tuple[float, list[float]]] = []

    def fit(x: torch.Tensor, _: torch.Tensor, l2: float, **_start: object) -> LinearProbe:
        fitted.append((l2, x[:, 3].tolist()))
        weight = torch.eye(6, CLASSES) * (1 if l2 > 1e-4 else -1)
        return LinearProbe(torch.zeros(6), torch.ones(6), weight, torch.zeros(CLASSES))

    monkeypatch.setattr("smalti.evaluation.probe.fit_linear", fit)
    x, test = features(30, 0), {LAYERS[0]: -features(30, 1)}
    assert probe({LAYERS[0]: x}, labels(), test, labels(), SPLIT).linear == 0.0
    *choices, (_, whole) = [one for one in fitted if len(one[1]) == len(SPLIT.fit)]
    assert [l2 for l2, _ in choices] == [1e-2, 1e-3]
    few = [rows for _, rows in fitted if len(rows) < len(SPLIT.fit)]
    assert [len(rows) for rows in few] == [CLASSES] * 5
    assert len({row for rows in few for row in rows} & set(whole)) == 5 * CLASSES, "no image twice"


def test_k_nn_has_a_layer_of_its_own() -> None:
    """Of two classes in four corners no hyperplane tells anything; among much noise neighbours tell little."""
    rng, two = torch.Generator().manual_seed(0), torch.arange(NUM) % 2
    side = 1.0 - 2 * torch.randint(2, (2, NUM), generator=rng)
    corners = torch.stack([side, side * (1 - 2 * two)], -1) * 30 + torch.randn(2, NUM, 2, generator=rng)
    noise = torch.randn(2, NUM, 40, generator=rng)
    noise[:, :, 0] += 6.0 * two
    train, test = ({LAYERS[0]: of[0], LAYERS[2]: of[1]} for of in zip(corners, noise, strict=True))
    result = probe(train, two, test, two, SPLIT)
    assert (result.layer, result.knn_layer) == (2, 1)
    assert result.knn == 1.0
    assert result.linear > 0.9


def test_every_layer_has_a_validation_score_in_the_unit_range() -> None:
    train = {layer: features(1, i) for i, layer in enumerate(LAYERS)}
    result = probe(train, labels(), train, labels(), SPLIT)
    assert set(result.validation) == {"1 cls", "1 mean", "2 2x2"}
    assert all(0 <= score <= 1 for score in result.validation.values())
    assert max(result.validation.values()) == result.validation[f"{result.layer} {result.pooling}"]


def test_there_may_be_fewer_test_images_than_training_images() -> None:
    train, test = {(1, "cls"): features(40, 0)}, {(1, "cls"): features(40, 1, 90)}
    assert probe(train, labels(), test, labels(90), SPLIT).linear == 1.0


def test_the_same_input_gives_the_same_result() -> None:
    train, test = {(1, "cls"): features(1, 0)}, {(1, "cls"): features(1, 1)}
    results = [dataclasses.asdict(probe(train, labels(), test, labels(), SPLIT)) for _ in range(2)]
    assert results[0] == results[1]


@pytest.mark.parametrize("num", [6, 9, 15])
def test_a_handful_of_images_can_be_probed(num: int) -> None:
    train = {(1, "cls"): features(30, 0, num)}
    result = probe(train, labels(num), train, labels(num), Split.of(num, 0.2, seed=0))
    assert 0 <= result.linear_few <= 1
    assert 0 <= result.linear <= 1


def test_a_class_that_is_rare_can_be_probed() -> None:
    rare = torch.zeros(60, dtype=torch.int64)
    rare[[3, 30]] = 1
    x = features(0, 0, 60) + 30 * rare[:, None]
    result = probe({(1, "cls"): x}, rare, {(1, "cls"): x}, rare, Split.of(60, 0.2, seed=0))
    assert 0 <= result.linear_few <= 1


def test_images_of_another_size_than_the_network_are_resized() -> None:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (NUM, 1, 10, 10), dtype=torch.uint8, generator=rng)
    images = InMemoryDataset(pixels, labels(), ("a", "b", "c"))
    assert resized(images, (10, 10)) is images
    vit = ViT(img_size=(8, 12), in_chans=1, patch_size=4, embed_dim=8, depth=1, num_heads=2)
    found = resized(images, vit.img_size)
    assert (found.images.shape[2:], found.images.dtype, found.classes) == (vit.img_size, torch.uint8, images.classes)
    few = TrainingData(images, images.select(torch.arange(30)))
    assert 0 <= probe_backbone(vit.build(0), few, choose_compute("cpu", "fp32")).linear <= 1
