"""GELU: the equation, and the same bits whether a network is compiled or not."""

import math

import pytest
import torch
from torch import Tensor, nn

from smalti.functional.gelu import gelu


def value_and_slope(x: float) -> tuple[float, float]:
    """x Φ(x) and Φ(x) + x φ(x)."""
    cdf = 0.5 * (1 + math.erf(x / math.sqrt(2)))
    return x * cdf, cdf + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("x", [-6.0, -1.5, -0.1, 0.0, 0.3, 2.0, 7.0])
def test_value_and_gradient_are_those_of_the_equation(x: float) -> None:
    at = torch.tensor(x, requires_grad=True)
    result = gelu(at)
    result.backward()
    value, slope = value_and_slope(x)
    assert float(result.detach()) == pytest.approx(value, abs=1e-6)
    assert float(at.grad) == pytest.approx(slope, abs=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inside_a_compiled_graph_it_gives_the_bits_of_torch(rng: torch.Generator, dtype: torch.dtype) -> None:
    """Traced like a compiled network, but run as it is: no C++ compiler is needed."""
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    x = (3 * torch.randn(5, 7, generator=rng)).to(dtype)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled = torch.compile(gelu, backend=backend)(one)
    plain = nn.functional.gelu(other)
    torch.autograd.backward((compiled, plain), (torch.ones_like(x), torch.ones_like(x)))
    assert any("smalti" in name for name in seen)
    assert torch.equal(compiled, plain)
    assert one.grad is not None
    assert other.grad is not None
    assert torch.equal(one.grad, other.grad)


def test_an_exported_network_has_the_usual_operation() -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return gelu(x)

    program = torch.export.export(Network(), (torch.ones(3),))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names == ["aten.gelu.default"]


def test_the_operation_keeps_the_promises_of_its_kind() -> None:
    """Schema, gradients registered as torch wants them, and shapes without values."""
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    promises = ("test_schema", "test_autograd_registration", "test_faketensor")
    found = torch.library.opcheck(torch.ops.smalti.gelu.default, (x,), test_utils=promises, raise_exception=False)
    assert found == dict.fromkeys(promises, "SUCCESS")
