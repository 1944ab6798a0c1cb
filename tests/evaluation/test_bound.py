"""Both stages as a model of images: what hard tokens and four priors say about held-out images under masks."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.core.rng import fold, signed
from smalti.evaluation.bound import PRIORS, TwoStageBound, describe, table_of, two_stage_bound
from smalti.evaluation.pretraining import evaluate_mim
from smalti.functional.masking import Random, mask_index
from smalti.models.mim import MaskedImageModel, build_mim
from smalti.models.vit import ViT
from smalti.tokenizers.dvae import DVAE, DiscreteVAE
from smalti.training.objectives import MaskedImageModeling
from tests import oracles
from tests.evaluation.test_likelihood import TwoLevels
from tests.test_contracts import GreyLevels

CPU = Compute(torch.device("cpu"), torch.float32)
V = 8
CONFIG = ViT(img_size=(8, 12), patch_size=4, embed_dim=16, depth=1, num_heads=2, init="xavier")
COUNTS = torch.tensor([5, 0, 2, 1, 1, 0, 3, 4])


def tokenizer() -> DiscreteVAE:
    built = DVAE(vocab_size=V, stride=4, width=5, depth=1).build()
    return built.requires_grad_(False)


def batch(number: int, num: int) -> Batch:
    """Images, masks with unequal counts and any tokens."""
    rng = torch.Generator().manual_seed(number)
    keys = fold(number, np.arange(num))
    masking = Random(0.5)
    mask = masking(keys, CONFIG.grid)
    mask[-1, np.flatnonzero(mask[-1])[0]] = False
    index, weight = mask_index(mask, masking.count(CONFIG.grid))
    return Batch(
        image=torch.randint(256, (num, 3, 8, 12), generator=rng, dtype=torch.uint8),
        index=torch.arange(num),
        key=torch.from_numpy(signed(keys)),
        ids=torch.randint(V, (num, 6), generator=rng),
        mask=torch.from_numpy(mask),
        mask_index=torch.from_numpy(index),
        mask_weight=torch.from_numpy(weight),
    )


BATCHES: Callable[[int], Batch] = [batch(0, 4), batch(1, 2)].__getitem__


def loss_of(model: MaskedImageModel) -> float:
    return evaluate_mim(MaskedImageModeling(model), BATCHES, 2, CPU).loss_nats


def constant(bias: Tensor) -> MaskedImageModel:
    """A model that says the same of every masked patch."""
    model = build_mim(CONFIG, V)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(bias)
    return model


def in_words(first: Batch, second: Batch) -> tuple[list[list[int]], list[list[bool]], list[np.ndarray]]:
    ids, masks, pixels = [], [], []
    for one in (first, second):
        assert one.ids is not None
        assert one.mask is not None
        ids += one.ids.tolist()
        masks += one.mask.tolist()
        pixels += list(one.image.double().numpy() / 255)
    return ids, masks, pixels


def test_the_rates_are_those_of_the_oracle() -> None:
    scores = torch.tensor([0.5, -1.0, 0.0, 2.0, 0.3, 0.0, -0.7, 1.1])
    losses = loss_of(constant(torch.zeros(V))), loss_of(constant(scores))
    found = two_stage_bound(tokenizer(), BATCHES, 2, COUNTS, losses, CPU)
    ids, masks, _ = in_words(BATCHES(0), BATCHES(1))
    zero, said = [0.0] * V, scores.tolist()
    expected = [oracles.token_rates(z, m, COUNTS.tolist(), zero, said) for z, m in zip(ids, masks, strict=True)]
    for number, name in enumerate(PRIORS):
        mean = sum(rates[number] for rates in expected) / 6
        assert getattr(found, name) == pytest.approx(mean, rel=1e-6), name
    assert (found.images, found.patches, found.sub_pixels) == (6, 6, 3 * 8 * 12)
    assert found.masked_patches == pytest.approx(16 / 6)


def test_the_distortion_is_the_mean_over_all_images() -> None:
    built = tokenizer()
    found = two_stage_bound(built, BATCHES, 2, COUNTS, (0.0, 0.0), CPU)
    ids, _, pixels = in_words(BATCHES(0), BATCHES(1))
    nats = levels = 0.0
    for z, image in zip(ids, pixels, strict=True):
        one_hot = F.one_hot(torch.tensor(z).view(1, *CONFIG.grid), V).permute(0, 3, 1, 2).float()
        mean, log_scale = built.distribution(one_hot)
        for pixel, mu, scale in zip(image.flatten(), mean.flatten(), log_scale.flatten(), strict=True):
            nats += oracles.logit_laplace_nll(float(pixel), float(mu), float(scale)) / 6
            levels += oracles.grey_level_nll(float(pixel), float(mu), float(scale)) / 6
    assert found.distortion == pytest.approx(nats, rel=1e-4)
    assert found.grey_levels == pytest.approx(levels, rel=1e-4)


def test_whoever_knows_nothing_pays_as_for_a_uniform_prior() -> None:
    """Constant logits and equal counts: every rate is N ln V."""
    loss = loss_of(constant(torch.zeros(V)))
    found = two_stage_bound(tokenizer(), BATCHES, 2, torch.full((V,), 3), (loss, loss), CPU)
    assert found.uniform == pytest.approx(6 * math.log(V))
    for name in ("unigram", "untrained", "trained"):
        assert getattr(found, name) == pytest.approx(found.uniform, rel=1e-6)


def test_a_model_that_knows_every_hidden_token_pays_for_visible_ones_alone() -> None:
    found = two_stage_bound(tokenizer(), BATCHES, 2, torch.full((V,), 3), (1.0, 0.0), CPU)
    assert found.trained == pytest.approx((36 - 16) / 6 * math.log(V))
    assert found.untrained == pytest.approx(found.trained + 16 / 6)


@pytest.mark.parametrize(("init", "near"), [("uniform", 0.1), ("xavier", 0.4)])
def test_before_training_a_hidden_patch_costs_about_ln_v(init: Literal["uniform", "xavier"], near: float) -> None:
    untrained = build_mim(ViT(img_size=(8, 12), patch_size=4, embed_dim=64, depth=2, num_heads=2, init=init), 512)
    assert loss_of(untrained) == pytest.approx(math.log(512), abs=near)


@given(st.lists(st.integers(0, V - 1), min_size=12, max_size=12))
def test_frequencies_of_the_very_tokens_never_cost_more_than_a_uniform_prior(tokens: list[int]) -> None:
    ids = torch.tensor(tokens).view(2, 6)
    mask = torch.tensor([[True, False] * 3] * 2)
    one = Batch(image=torch.zeros(2, 3, 8, 12), index=torch.arange(2), key=torch.arange(2), ids=ids, mask=mask)
    counts = torch.bincount(ids.flatten(), minlength=V)
    found = two_stage_bound(GreyLevels(V), lambda _: one, 1, counts, (0.0, 0.0), CPU)
    assert found.unigram <= found.uniform + 1e-9
    assert found.unigram >= 6 * oracles.entropy(counts.tolist()) - 1e-9


class DarkOrBright(TwoLevels):
    """With p(x|z) and few enough tokens to write an image in every way."""

    def encode(self, images: Tensor) -> Tensor:
        return (F.avg_pool2d(images.float().mean(1), 4) > 128).long()

    def decode(self, ids: Tensor) -> Tensor:
        return self.distribution(self.values(ids))[0].sigmoid()


def test_it_is_a_bound() -> None:
    """Against p(x|x̃) itself: the sum over every way to write the image in tokens."""
    images = torch.randint(256, (3, 1, 4, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    tokens, counts = DarkOrBright(), torch.tensor([1, 3])
    mask = torch.tensor([[True, False]] * 3)
    one = Batch(
        image=images, index=torch.arange(3), key=torch.arange(3), ids=tokens.encode(images).flatten(1), mask=mask
    )
    found = two_stage_bound(tokens, lambda _: one, 1, counts, (0.0, 0.0), CPU)
    exact = {"uniform": 0.0, "unigram": 0.0}
    prior = {"uniform": [1 / 2, 1 / 2], "unigram": [2 / 6, 4 / 6]}
    for image in images.double().numpy() / 255:
        for name, p in prior.items():
            likelihood = 0.0
            for left, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
                nats = sum(oracles.logit_laplace_nll(float(x), 2.0 * left - 1, 0.0) for x in image[0, :, :4].flat)
                nats += sum(oracles.logit_laplace_nll(float(x), 2.0 * right - 1, 0.0) for x in image[0, :, 4:].flat)
                likelihood += p[left] * p[right] * math.exp(-nats)
            exact[name] -= math.log(likelihood) / 3
    assert found.distortion is not None
    assert found.distortion + found.uniform > exact["uniform"]
    assert found.distortion + found.unigram > exact["unigram"]


BOUND = TwoStageBound(
    distortion=-30.0,
    grey_levels=900.0,
    uniform=12.0,
    unigram=10.0,
    untrained=11.0,
    trained=8.0,
    patches=6,
    masked_patches=2.5,
    sub_pixels=288,
    images=6,
)


def test_the_parts_add_up_in_either_unit() -> None:
    found = {key: value for key, value in BOUND.as_dict().items() if value is not None}
    for name in PRIORS:
        for unit in ("nats_per_patch", "bits_per_dim", "grey_level_bits_per_dim"):
            parts = found[f"distortion_{unit}"] + found[f"{name}_rate_{unit.removeprefix('grey_level_')}"]
            assert found[f"{name}_bound_{unit}"] == pytest.approx(parts)
    assert found["distortion_nats_per_patch"] == pytest.approx(-5)
    assert found["trained_rate_nats_per_patch"] == pytest.approx(8 / 6)
    assert found["distortion_bits_per_dim"] == pytest.approx(-30 / 288 / math.log(2) + math.log2(255 / 0.8))
    assert found["distortion_grey_level_bits_per_dim"] == pytest.approx(900 / 288 / math.log(2))
    assert found["trained_rate_bits_per_dim"] == pytest.approx(8 / 288 / math.log(2))
    assert (found["images"], found["patches"], found["masked_patches"], found["sub_pixels"]) == (6, 6, 2.5, 288)


def test_a_tokenizer_without_a_density_has_rates_and_no_bound() -> None:
    for built, density in ((GreyLevels(V), True), (tokenizer(), False)):
        found = two_stage_bound(built, BATCHES, 2, COUNTS, (2.0, 1.0), CPU, density=density)
        assert found.distortion is None
        numbers = found.as_dict()
        missing = {key for key, value in numbers.items() if value is None}
        assert missing == {key for key in numbers if key.startswith("distortion") or "_bound_" in key}
        assert [row[1:] for row in table_of(numbers)[1:]] == [
            ["-", f"{numbers[f'{name}_rate_nats_per_patch']:.3f}", "-", "-", "-"] for name in PRIORS
        ]


def test_the_table_has_a_row_for_each_prior() -> None:
    assert describe(BOUND.as_dict()).splitlines() == [
        "6 held-out images, 2.5 of 6 patches masked; D and R in nats per patch, then D + R in bits per dimension",
        "prior of the tokens                            D           R       D + R    bits/dim grey levels",
        "uniform: stage one alone                  -5.000       2.000      -3.000       8.226       4.569",
        "unigram: how frequent each token is       -5.000       1.667      -3.333       8.216       4.559",
        "masked image model, untrained             -5.000       1.833      -3.167       8.221       4.564",
        "masked image model, trained               -5.000       1.333      -3.667       8.206       4.548",
    ]
