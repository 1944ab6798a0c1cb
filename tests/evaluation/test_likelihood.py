"""The bound on the likelihood of images, and what hard tokens cost."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.core.compute import Compute
from smalti.evaluation.likelihood import Posterior, Quantiser, measure_bound, soft_psnr
from smalti.evaluation.reconstruction import evaluate_tokenizer
from smalti.functional.losses import logit_laplace_nll
from smalti.functional.metrics import psnr
from smalti.tokenizers.dvae import DVAE, DiscreteVAE
from smalti.tokenizers.quantised import FSQ, VQ
from tests import oracles
from tests.test_contracts import GreyLevels

CPU = Compute(torch.device("cpu"), torch.float32)


def tokenizer() -> DiscreteVAE:
    built = DVAE(vocab_size=6, stride=4, in_chans=1, width=5, depth=1).build()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    return built.requires_grad_(False)


def images() -> Tensor:
    return torch.randint(256, (3, 1, 4, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def one_hot(ids: Tensor) -> Tensor:
    return F.one_hot(ids, 6).permute(0, 3, 1, 2).float()


def test_the_bound_is_distortion_and_rate_of_the_hard_tokens() -> None:
    built = tokenizer()
    ids = built.encode(images())
    bound = measure_bound(built, images(), ids.flatten(1), 1.25, CPU)
    mean, log_scale = built.distribution(one_hot(ids))
    nats = levels = 0.0
    for pixel, mu, scale in zip((images() / 255.0).flatten(), mean.flatten(), log_scale.flatten(), strict=True):
        nats += oracles.logit_laplace_nll(float(pixel), float(mu), float(scale)) / 3
        levels += oracles.grey_level_nll(float(pixel), float(mu), float(scale)) / 3
    assert bound.distortion_nats == pytest.approx(nats, rel=1e-4)
    assert bound.elbo_nats == pytest.approx(-nats - 2 * math.log(6), rel=1e-4)
    assert bound.grey_level_bits_per_dim == pytest.approx((levels + 2 * math.log(6)) / math.log(2) / 32, rel=1e-4)
    bits = (nats + 2 * math.log(6)) / math.log(2) / 32 + math.log2(255 / 0.8)
    assert bound.bits_per_dim == pytest.approx(bits, rel=1e-4)
    assert bound.bits_per_dim - bound.bits_per_dim_unigram == pytest.approx(2 * (math.log(6) - 1.25) / 32 / math.log(2))


def test_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    built = tokenizer()
    ids = built.encode(images()).flatten(1)
    whole = measure_bound(built, images(), ids, 1.0, CPU), soft_psnr(built, images(), CPU)
    monkeypatch.setattr("smalti.evaluation.likelihood._WEIGHTS", 1)
    parts = measure_bound(built, images(), ids, 1.0, CPU), soft_psnr(built, images(), CPU)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert parts[1] == pytest.approx(whole[1], rel=1e-6)


def test_a_grey_level_is_worth_its_share_of_the_density() -> None:
    """Where the density hardly changes within a grey level, the bits are those of the level's own probability."""
    pixel, mu, log_scale = 100 / 255, 0.1, 0.0

    exact = oracles.grey_level_nll(pixel, mu, log_scale) / math.log(2)
    density = oracles.logit_laplace_nll(pixel, mu, log_scale)
    assert density / math.log(2) + math.log2(255 / 0.8) == pytest.approx(exact, abs=1e-3)


def test_the_soft_posterior_is_decoded_with_all_its_weights() -> None:
    built = tokenizer()
    mean, _ = built.distribution(F.softmax(built.logits(images()), dim=1))
    pictures = ((mean.sigmoid() - 0.1) / 0.8).clamp(0, 1)
    assert soft_psnr(built, images(), CPU) == pytest.approx(float(psnr(images() / 255.0, pictures).mean()), rel=1e-5)


def test_a_posterior_that_is_sure_has_no_gap() -> None:
    built = tokenizer()
    with torch.no_grad():
        built.to_logits.weight.mul_(1e6)
        assert built.to_logits.bias is not None
        built.to_logits.bias.mul_(1e6)
    hard = psnr(images() / 255.0, built.decode(built.encode(images()))).mean()
    assert soft_psnr(built, images(), CPU) == pytest.approx(float(hard), abs=1e-4)


class TwoLevels:
    """A quantiser without a network: dark or bright, each with its own vector."""

    vocab_size, stride = 2, 4

    def values(self, ids: Tensor) -> Tensor:
        return torch.stack([ids * 2.0 - 1, ids * 0.0], dim=-1)

    def distribution(self, values: Tensor) -> tuple[Tensor, Tensor]:
        painted = values.repeat_interleave(4, 1).repeat_interleave(4, 2).permute(0, 3, 1, 2)
        return painted[:, :1], painted[:, 1:]


def test_a_quantiser_has_a_bound_too() -> None:
    ids = torch.tensor([[0, 1], [1, 1], [0, 0]])
    bound = measure_bound(TwoLevels(), images(), ids, 0.0, CPU)
    mean = (ids * 2.0 - 1).repeat_interleave(4, 1)[:, None, None].expand(-1, 1, 4, -1)
    nats = sum(
        oracles.logit_laplace_nll(float(pixel), float(mu), 0.0)
        for pixel, mu in zip((images() / 255.0).flatten(), mean.flatten(), strict=True)
    )
    assert bound.distortion_nats == pytest.approx(nats / 3, rel=1e-5)
    assert bound.bits_per_dim_unigram < bound.bits_per_dim


@pytest.mark.parametrize("config", [VQ(6, stride=4, in_chans=1, width=5), FSQ((3, 3), stride=4, in_chans=1, width=5)])
def test_every_tokenizer_that_quantises_has_a_bound(config: VQ | FSQ) -> None:
    built = config.build().requires_grad_(False)
    assert isinstance(built, Quantiser)
    assert not isinstance(built, Posterior)
    ids = built.encode(images())
    bound = measure_bound(built, images(), ids.flatten(1), 1.0, CPU)
    mean, log_scale = built.reconstruct(built.values(ids), ids)
    nats = logit_laplace_nll(images() / 255.0, mean, log_scale).sum((1, 2, 3)).mean()
    assert bound.distortion_nats == pytest.approx(float(nats), rel=1e-5)
    assert math.isfinite(bound.bits_per_dim)
    found = evaluate_tokenizer(built, images(), CPU).as_dict()
    assert found["bits_per_dim"] is not None
    assert found["hard_soft_gap_db"] is None, "there is no posterior"


def test_who_has_what() -> None:
    assert isinstance(tokenizer(), Posterior)
    assert isinstance(TwoLevels(), Quantiser)
    assert not isinstance(TwoLevels(), Posterior)
    assert not isinstance(GreyLevels(), Posterior | Quantiser)
