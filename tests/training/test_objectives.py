"""What is minimised, against the equations."""

import dataclasses
from typing import Any, Literal

import numpy as np
import pytest
import torch

from smalti.core.contracts import Batch
from smalti.core.errors import UsageError
from smalti.core.rng import fold, signed
from smalti.functional.gumbel_relaxation import gumbel_softmax
from smalti.functional.losses import marginal_entropy, reconstruction_loss
from smalti.functional.noise import gumbel_noise
from smalti.models.vit import ViT
from smalti.tokenizers.dalle import DallE
from smalti.tokenizers.dvae import DVAE, DiscreteVAE
from smalti.training.objectives import DiscreteVAEObjective, Relaxation
from tests import oracles

CONFIG = ViT(img_size=(8, 12), patch_size=4, embed_dim=16, depth=2, num_heads=2, init="xavier", drop_path_rate=0.5)
STEP = torch.tensor(0)


TOKENIZER = DVAE(vocab_size=6, stride=4, in_chans=1, width=5, depth=1)


def tokenizer() -> DiscreteVAE:
    built = TOKENIZER.build()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    return built


def vae_batch(num: int = 2) -> Batch:
    images = torch.rand(num, 1, 8, 4, generator=torch.Generator().manual_seed(0))
    return Batch(image=images, index=torch.arange(num), key=torch.from_numpy(signed(fold(np.arange(num)))))


@pytest.mark.parametrize("step", [0, 3, 100])
def test_the_vae_loss_equals_the_equation_at_every_step(step: int) -> None:
    """Mean NLL of relaxed tokens + beta / (C stride²) · mean KL - spread / (C stride²) · H(mean q)."""
    built, batch = tokenizer(), vae_batch()
    relaxation = Relaxation(beta=5.0, beta_ramp=0.5, temperature=(1.0, 0.25), anneal_ratio=1.0, spread=2.0)
    with torch.no_grad():
        output = DiscreteVAEObjective(built, relaxation, steps=12)(batch, torch.tensor(step))
        logits = built.logits(batch.image).permute(0, 2, 3, 1)
        gumbel = gumbel_noise(batch.key, 2 * 1 * 6).reshape(2, 2, 1, 6)
        temperature = oracles.cosine_schedule(step, 1.0, 0.25, 12, 0)
        rows, noise = logits.double().numpy().reshape(-1, 6), gumbel.double().numpy().reshape(-1, 6)
        relaxed = [oracles.gumbel_softmax(row, g, temperature) for row, g in zip(rows, noise, strict=True)]
        weights = torch.tensor(relaxed, dtype=torch.float32).reshape(2, 2, 1, 6).permute(0, 3, 1, 2)
        mean, log_scale = (x.flatten().tolist() for x in built.distribution(weights))
    pixels = batch.image.flatten().tolist()
    nll = np.mean([oracles.logit_laplace_nll(*values) for values in zip(pixels, mean, log_scale, strict=True)])
    kl = np.mean([oracles.kl_to_uniform(row) for row in rows])
    beta = 5.0 * min(1.0, step / 6)
    expected = nll + beta / 16 * kl - 2.0 / 16 * oracles.marginal_entropy(rows)
    assert float(output.loss_sum / output.weight) == pytest.approx(expected, rel=1e-4)
    assert float(output.metrics["nll"][0] / output.metrics["nll"][1]) == pytest.approx(nll, rel=1e-4)
    assert float(output.metrics["kl"][0] / output.metrics["kl"][1]) == pytest.approx(kl, rel=1e-4)


def test_the_vae_reads_the_token_view_where_there_is_one() -> None:
    objective, batch = DiscreteVAEObjective(tokenizer(), Relaxation(), 10), vae_batch()
    both = dataclasses.replace(batch, image=torch.zeros(2, 1, 8, 4), token_image=batch.image)
    assert torch.equal(objective(batch, STEP).loss_sum, objective(both, STEP).loss_sum)


def test_the_noise_of_the_vae_is_a_function_of_the_key() -> None:
    objective, batch = DiscreteVAEObjective(tokenizer(), Relaxation(), 10), vae_batch()
    other = dataclasses.replace(batch, key=batch.key + 1)
    assert torch.equal(objective(batch, STEP).loss_sum, objective(batch, STEP).loss_sum)
    assert not torch.equal(objective(batch, STEP).loss_sum, objective(other, STEP).loss_sum)


def test_every_parameter_of_the_tokenizer_learns() -> None:
    built = tokenizer()
    output = DiscreteVAEObjective(built, Relaxation(), 10)(vae_batch(), torch.tensor(5))
    output.loss_sum.backward()
    assert [name for name, p in built.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_spread_rewards_the_entropy_of_the_mean_posterior() -> None:
    built, batch = tokenizer(), vae_batch()
    plain, spread = (DiscreteVAEObjective(built, Relaxation(spread=weight), 10)(batch, STEP) for weight in (0.0, 16.0))
    with torch.no_grad():
        entropy = marginal_entropy(built.logits(batch.image).softmax(1).mean((0, 2, 3)))
    difference = (plain.loss_sum - spread.loss_sum) / plain.weight
    assert float(difference.detach()) == pytest.approx(float(entropy), rel=1e-4)


@pytest.mark.parametrize("likelihood", ["mse", "l1"])
def test_another_likelihood_takes_the_place_of_the_nll(likelihood: Literal["mse", "l1"]) -> None:
    built, batch = tokenizer(), vae_batch()
    relaxation = Relaxation(beta=3.0, beta_ramp=1.0, temperature=(1.0, 1.0))
    with torch.no_grad():
        output = DiscreteVAEObjective(built, relaxation, 10, likelihood)(batch, torch.tensor(5))
        logits = built.logits(batch.image).permute(0, 2, 3, 1)
        gumbel = gumbel_noise(batch.key, logits[0].numel()).view_as(logits)
        mean, _ = built.distribution((logits + gumbel).softmax(-1).permute(0, 3, 1, 2))
    pairs = zip(batch.image.flatten().tolist(), mean.flatten().tolist(), strict=True)
    error = np.mean([oracles.reconstruction_loss(likelihood, pixel, mu, 0.0) for pixel, mu in pairs])
    kl = np.mean([oracles.kl_to_uniform(row) for row in logits.double().numpy().reshape(-1, 6)])
    assert float(output.metrics[likelihood][0]) / 2 == pytest.approx(error, rel=1e-4)
    assert float(output.loss_sum / output.weight) == pytest.approx(error + 1.5 / 16 * kl, rel=1e-4)


def test_hard_samples_decode_one_code_a_position_and_every_parameter_still_learns() -> None:
    built, batch = tokenizer(), vae_batch()
    seen: list[torch.Tensor] = []
    built.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    output = DiscreteVAEObjective(built, Relaxation(hard=True), 10)(batch, STEP)
    shown = seen[0].permute(0, 2, 3, 1).flatten(0, 2)
    assert float(torch.cdist(shown, built.codebook.weight[:, :, 0, 0].t()).amin(1).detach().max()) < 1e-3
    output.loss_sum.backward()
    assert [name for name, p in built.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("hard", [False, True])
def test_the_dalle_architecture_trains_in_the_same_way(hard: bool) -> None:
    built = DallE(vocab_size=6, stride=4, in_chans=1, width=4, depth=1, code_width=5).build()
    batch, relaxation = vae_batch(), Relaxation(hard=hard, spread=1.0, dead_after=1)
    objective = DiscreteVAEObjective(built, relaxation, 10)
    output = objective(batch, torch.tensor(5))
    output.loss_sum.backward()
    assert [name for name, p in built.named_parameters() if p.grad is None or not p.grad.any()] == []
    if not hard:
        with torch.no_grad():
            logits = built.logits(batch.image).permute(0, 2, 3, 1)
            gumbel = gumbel_noise(batch.key, logits[0].numel()).view_as(logits)
            tokens = gumbel_softmax(logits, gumbel, objective.temperature(5)).permute(0, 3, 1, 2)
            nll = reconstruction_loss("logit_laplace", batch.image, *built.distribution(tokens)).mean()
        assert float(output.metrics["nll"][0]) / 2 == pytest.approx(float(nll), rel=1e-4)
    objective.after_step(1)
    assert objective.unused.max() <= 1


def test_dead_codes_come_back_and_without_the_option_there_is_no_state() -> None:
    built, batch = tokenizer(), vae_batch(num=8)
    assert dict(DiscreteVAEObjective(built, Relaxation(), 10).named_buffers(recurse=False)) == {}
    objective = DiscreteVAEObjective(built, Relaxation(dead_after=2), 10)
    assert built.to_logits.bias is not None
    with torch.no_grad():
        built.to_logits.bias[[1, 4]] = -1e6
        before = built.encode(batch.image)
    for step in (1, 2):
        objective(batch, torch.tensor(step - 1))
        objective.after_step(step)
        after = built.encode(batch.image)
        assert torch.equal(after, before) == (step == 1)
    assert not {1, 4} & set(before.flatten().tolist())
    assert {1, 4} & set(after.flatten().tolist())
    assert objective.unused[[1, 4]].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("relaxation", "needed"), [(Relaxation(), False), (Relaxation(spread=0.1), True), (Relaxation(dead_after=3), True)]
)
def test_whole_batches_are_needed_where_codes_are_counted_over_them(relaxation: Relaxation, needed: bool) -> None:
    assert DiscreteVAEObjective(tokenizer(), relaxation, 10).whole_batches == needed


def test_where_no_code_is_dead_the_network_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.training.objectives.split", lambda *_: pytest.fail("nothing is dead"))
    objective = DiscreteVAEObjective(tokenizer(), Relaxation(dead_after=9), 10)
    objective(vae_batch(), STEP)
    objective.after_step(1)
    assert objective.unused.max() <= 1


def test_evaluating_leaves_what_follows_the_weights_alone() -> None:
    built, batch = tokenizer(), vae_batch()
    objective = DiscreteVAEObjective(built, Relaxation(dead_after=1), 10).eval()
    objective(batch, STEP)
    objective.after_step(1)
    assert objective.unused.tolist() == [0] * 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": -1.0}, r"beta is -1\.0; use 0 or more"),
        ({"spread": -1.0}, r"spread is -1\.0; use 0 or more"),
        ({"temperature": (1.0, 0.0)}, "temperatures"),
        ({"anneal_ratio": 0.0}, r"anneal_ratio is 0\.0; use a share in \(0, 1\]"),
        ({"dead_after": 0}, "codes dead after 0 steps; use at least 1"),
        ({"beta_ramp": 1.5}, r"beta_ramp is 1\.5; use a share in \(0, 1\]"),
    ],
)
def test_impossible_relaxations_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Relaxation(**fields)
