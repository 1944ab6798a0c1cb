"""Where a number that is not finite begins, from a network that has one at a known place."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smalti.training.nonfinite import NotFiniteError, Numbers, Place, first_not_finite


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        return self.function(values)


def network(function: Callable[[Tensor], Tensor] = torch.tanh) -> nn.Sequential:
    """Linear, the function, linear inside another module."""
    model = nn.Sequential(
        nn.Linear(3, 3), Function(function), nn.Sequential(nn.Linear(3, 3), Function(lambda values: values * 1))
    )
    for number, parameter in enumerate(model.parameters()):
        nn.init.constant_(parameter, 0.1 * number)
    return model


def found(model: nn.Module, loss_of: Callable[[Tensor], Tensor] = Tensor.sum) -> Place | None:
    def step() -> Numbers:
        loss = loss_of(model(torch.ones(2, 3)))
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        return Numbers.of(model, loss.detach(), norm)

    return first_not_finite(model, step)


def root_at_zero(values: Tensor) -> Tensor:
    """Nothing wrong going forward; going back, the slope of the root at 0 is infinite, and times 0 no number."""
    return (values * 0).sqrt()


def test_a_step_in_which_all_is_finite() -> None:
    assert found(network()) is None


def test_a_weight_that_is_not_finite_before_the_step() -> None:
    model: Any = network()
    with torch.no_grad():
        model[2][0].bias[1] = float("inf")
    assert found(model) == Place("weight", "2.0.bias")


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_an_activation_is_that_of_the_first_and_innermost_module(scale: float) -> None:
    assert found(network(lambda values: values * scale)) == Place("activation", "1")
    model: Any = network()
    model[2][1] = Function(lambda values: values * scale)
    assert found(model) == Place("activation", "2.1")


def test_a_loss_that_is_not_finite_although_all_activations_are() -> None:
    assert found(network(), lambda output: (output.sum() * 0).log()) == Place("loss", "")


def test_a_gradient_is_that_of_the_output_before_the_operation() -> None:
    assert found(network(root_at_zero)) == Place("gradient", "0")


def test_a_gradient_that_begins_in_the_loss() -> None:
    assert found(network(), lambda output: (output * 0).sqrt().sum()) == Place("gradient", "2.1")


def test_nothing_keeps_watching() -> None:
    model = network(root_at_zero)
    found(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_numbers_are_the_norms_of_the_gradients() -> None:
    model = nn.Linear(2, 1)
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    numbers = Numbers.of(model, torch.tensor(0.5), torch.tensor(26.0).sqrt())
    assert numbers.grad_norms == {"weight": 5.0, "bias": 1.0}
    assert numbers.loss == 0.5
    assert numbers.grad_norm == pytest.approx(math.sqrt(26))


def test_numbers_are_the_same_bit_for_bit_and_nan_is_nan() -> None:
    one = Numbers(math.nan, 1.0, {"a": math.inf})
    assert one.same(Numbers(float("nan"), 1.0, {"a": float("inf")}))
    assert not one.same(Numbers(math.nan, math.nextafter(1.0, 2), {"a": math.inf}))
    assert not one.same(Numbers(math.nan, 1.0, {"a": -math.inf}))


def test_the_error_says_which_of_both_is_not_finite() -> None:
    loss, gradient = Numbers(math.inf, 1.0, {}), Numbers(2.0, math.nan, {})
    assert str(NotFiniteError(7, loss)).startswith(
        "the loss is not finite at step 7; loss inf; lower the learning rate"
    )
    assert str(NotFiniteError(7, gradient)).startswith("the gradient is not finite at step 7; loss 2; lower the learn")
