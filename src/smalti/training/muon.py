"""Muon for the weight matrices of blocks, beside AdamW for everything else.

AdamW rescales each number of a gradient by itself. Muon takes a matrix as a whole: its update is the momentum of the
gradient with all singular values brought near 1, so directions that gradients rarely point in are learned as fast as
the others.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.core.ranks import rank, world_size
from smalti.distributed.collectives import all_gather, distribute_like, full_tensor

_MOMENTUM = 0.95
"""Decay of the momentum. Reference: Jordan et al. 2024."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_RMS = 0.2
"""The root mean square of an update of AdamW, about. Reference: Liu et al. 2025, §2.2."""
_EPS = 1e-7
_MAX_ELEMENTS = 2**22
"""Elements of the matrices that a rank orthogonalises in one batch: small ones are many, and large ones take memory."""


def orthogonalised(matrices: Float[Tensor, "k m n"]) -> Float[Tensor, "k m n"]:
    """Each matrix U S Vᵀ as about U Vᵀ: singular values become 0.68 to 1.15, those below 0.005 of the norm less.

    Five Newton-Schulz steps X ← aX + (bA + cA²)X with A = XXᵀ, whose coefficients rise fast from 0 instead of
    converging to 1. Products, and so the result, are in the number format of autocast.

    Reference: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    a, b, c = _COEFFICIENTS
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / wide.flatten(1).norm(dim=1).clamp(min=_EPS)[:, None, None]
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrices else x.mT


class MuonAdamW(torch.optim.Optimizer):
    """Two optimisers of one network, with one state: Muon for `matrices`, AdamW for `others`.

    Learning rate and weight decay mean the same in both: an update of Muon, orthogonal, is multiplied by
    0.2·√max(m, n), which makes its root mean square that of AdamW's.

    Reference: Jordan et al. 2024; Liu et al. 2025, "Muon is Scalable for LLM Training", eq. 4.

    Args:
        matrices: parameter groups of m x n weights, with `lr` and `weight_decay`.
        others: of the parameters that AdamW updates.
    """

    def __init__(self, matrices: Sequence[dict[str, Any]], others: torch.optim.AdamW) -> None:
        super().__init__([*matrices, *others.param_groups], {})
        self._others, self._count = others, len(matrices)

    @property
    def matrices(self) -> list[dict[str, Any]]:
        """The parameter groups of Muon."""
        return self.param_groups[: self._count]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; there are no closures."""
        assert closure is None
        # `load_state_dict` replaces both
        self._others.state, self._others.param_groups = self.state, self.param_groups[self._count :]
        self._others.step()
        for group in self.matrices:
            for alike in _by_shape(group["params"]):
                self._update(alike, group["lr"], group["weight_decay"])

    def _update(self, alike: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        """Update matrices of one shape, whose products are then computed at once."""
        directions = list[Tensor]()
        for parameter in alike:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
            directions.append(full_tensor(parameter.grad.lerp(momentum, _MOMENTUM)))  # Nesterov's
        scale = _RMS * max(alike[0].shape) ** 0.5
        for parameter, update in zip(alike, _shared(torch.stack(directions)), strict=True):
            parameter.mul_(1 - lr * weight_decay).add_(distribute_like(parameter, update), alpha=-lr * scale)


def _shared(matrices: Float[Tensor, "k m n"]) -> Float[Tensor, "k m n"]:
    """`orthogonalised`, of which every rank computes its part."""
    if world_size() == 1:
        return orthogonalised(matrices)
    each = -(-len(matrices) // world_size())
    padded = nn.functional.pad(matrices, (0, 0, 0, 0, 0, each * world_size() - len(matrices)))
    return all_gather(orthogonalised(padded[rank() * each :][:each]))[: len(matrices)]


def _by_shape(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Those with a gradient, matrices of the same shape together, up to `_MAX_ELEMENTS` numbers a rank."""
    alike = defaultdict[torch.Size, list[nn.Parameter]](list)
    for parameter in parameters:
        if parameter.grad is not None:
            alike[parameter.shape].append(parameter)
    for shape, found in alike.items():
        count = max(1, _MAX_ELEMENTS // shape.numel()) * world_size()
        yield from (found[start : start + count] for start in range(0, len(found), count))
