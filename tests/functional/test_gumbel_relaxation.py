"""Relaxed tokens part by part, against the same written with autograd and against finite differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smalti.functional import gumbel_relaxation as relaxation
from smalti.functional.gumbel_relaxation import RelaxedTokens, gumbel_softmax, relaxed_tokens, straight_through
from smalti.functional.losses import kl_to_uniform
from smalti.functional.noise import gumbel_noise
from tests import oracles

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs(shape: tuple[int, int, int, int, int], dtype: torch.dtype = torch.float32) -> tuple[Inputs, Tensor]:
    """Features, weight, bias and codebook that want gradients, and keys; `shape` is B, N, D, V, d."""
    batch, positions, width, vocab, code = shape
    rng = torch.Generator().manual_seed(3)
    sizes = ((batch, positions, width), (vocab, width), (vocab,), (vocab, code))
    made = [torch.randn(*size, generator=rng, dtype=dtype).requires_grad_() for size in sizes]
    return (made[0], made[1], made[2], made[3]), torch.randint(1 << 60, (batch,), generator=rng)


def whole(given: Inputs, key: Tensor, temperature: float, hard: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, KL and mean posterior by autograd, with every tensor in full."""
    features, weight, bias, codebook = given
    scores = features @ weight.t() + bias
    sample = gumbel_softmax(scores, gumbel_noise(key, scores[0].numel()).view_as(scores), temperature)
    if hard:
        one_hot = torch.nn.functional.one_hot(sample.argmax(-1), len(weight)).to(sample.dtype)
        sample = straight_through(one_hot, sample)
    return sample @ codebook, kl_to_uniform(scores).mean(), scores.softmax(-1).flatten(0, 1).mean(0)


def some_loss(codes: Tensor, kl: Tensor, mean: Tensor) -> Tensor:
    """Uses all that has a gradient, each in another way."""
    direction = torch.linspace(-1, 2, codes.numel()).view_as(codes)
    return (codes * direction).sum() + 3 * kl - 2 * (mean * mean.log()).sum()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("numbers", [1, 30, 1 << 20])
def test_parts_of_the_batch_are_the_whole(hard: bool, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One position, four positions and all of them at a time."""
    monkeypatch.setattr(relaxation, "_NUMBERS", numbers)
    given, key = inputs((3, 5, 4, 7, 6))
    tokens = relaxed_tokens(*given, key, 0.7, hard=hard)
    expected = whole(given, key, 0.7, hard)
    for own, wanted in zip(tokens[:3], expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(some_loss(*tokens[:3]), given)
    for own, wanted in zip(gradients, torch.autograd.grad(some_loss(*expected), given), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    given, key = inputs((2, 3, 2, 5, 3), torch.float64)

    def outputs(features: Tensor, weight: Tensor, bias: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
        return relaxed_tokens(features, weight, bias, codebook, key, 0.6)[:3]

    assert torch.autograd.gradcheck(outputs, given)


def test_the_best_code_is_that_of_the_greatest_score_and_has_no_gradient() -> None:
    given, key = inputs((2, 3, 4, 5, 6))
    tokens = relaxed_tokens(*given, key, 1.0)
    scores = given[0] @ given[1].t() + given[2]
    assert torch.equal(tokens.ids, scores.argmax(-1))
    torch.testing.assert_close(tokens.best, scores.amax(-1))
    assert not tokens.best.requires_grad
    assert not tokens.ids.requires_grad


def test_hard_samples_are_vectors_of_the_codebook() -> None:
    given, key = inputs((2, 3, 4, 5, 6))
    codes = relaxed_tokens(*given, key, 1.0, hard=True).codes
    distance = torch.cdist(codes.flatten(0, 1), given[3])
    assert float(distance.amin(1).detach().max()) < 1e-6


def test_products_with_the_codebook_are_in_its_format_and_nearly_the_same() -> None:
    (features, weight, bias, codebook), key = inputs((4, 6, 8, 16, 8))
    narrow = codebook.detach().bfloat16().requires_grad_()
    found = relaxed_tokens(features, weight, bias, narrow, key, 0.8)
    expected = relaxed_tokens(features, weight, bias, codebook, key, 0.8)
    assert found.codes.dtype == torch.bfloat16
    assert torch.equal(found.kl, expected.kl), "scores are not rounded"
    torch.testing.assert_close(found.codes.float(), expected.codes, rtol=0.03, atol=0.03)
    own, wanted = (
        torch.autograd.grad(some_loss(t.codes.float(), t.kl, t.mean_posterior), (features, weight))
        for t in (found, expected)
    )
    for one, other in zip(own, wanted, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 0.02


@pytest.mark.parametrize("hard", [False, True])
def test_one_position_has_the_gradient_of_the_equation(hard: bool) -> None:
    scores, direction = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features, key = scores.view(1, 1, 6).clone().requires_grad_(), torch.tensor([11])
    nothing = torch.zeros(6, dtype=torch.float64)
    tokens = relaxed_tokens(
        features, torch.eye(6, dtype=torch.float64), nothing, direction[:, None], key, 0.7, hard=hard
    )
    (gradient,) = torch.autograd.grad(tokens.codes.sum(), features)
    gumbel = gumbel_noise(key, 6)[0].double().numpy()
    expected = oracles.straight_through_gradient(scores.numpy(), gumbel, 0.7, direction.numpy())
    assert gradient.flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_what_all_codes_have_in_common_says_nothing_to_the_scores_also_in_bf16() -> None:
    """A sample rounded to three digits does not add up to 1; what is missing must not be taken for a gradient."""
    (features, weight, bias, codebook), key = inputs((4, 16, 8, 64, 8))
    found = []
    for book in (codebook.detach() + 60, (codebook.detach() + 60).bfloat16()):
        codes = relaxed_tokens(features, weight, bias, book, key, 1.0).codes
        found.append(torch.autograd.grad(codes.float().sum(), (features, bias)))
    for exact, rounded in zip(*found, strict=True):
        assert float((rounded - exact).norm() / exact.norm()) < 0.3


@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 9), st.floats(0.05, 3.0))
def test_the_kl_and_the_mean_posterior_are_what_they_are_called(
    batch: int, positions: int, vocab: int, temperature: float
) -> None:
    given, key = inputs((batch, positions, 3, vocab, 2))
    tokens: RelaxedTokens = relaxed_tokens(*given, key, temperature)
    assert -1e-5 <= float(tokens.kl.detach()) <= float(torch.tensor(float(vocab)).log()) + 1e-5
    assert float(tokens.mean_posterior.sum().detach()) == pytest.approx(1.0, abs=1e-5)


def test_no_more_than_two_tensors_of_all_scores_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and sample: the second one in two bytes."""
    given, key = inputs((8, 16, 4, 64, 4))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        relaxed_tokens(*given[:3], given[3].bfloat16(), key, 1.0)
    assert sum(size for size in kept.values() if size > 8 * 16 * 64) == 8 * 16 * 64 * (4 + 2)
