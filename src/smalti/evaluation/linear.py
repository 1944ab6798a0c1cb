"""Linear probing: multinomial logistic regression on frozen features, fitted to convergence by L-BFGS."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier: logits = standardised features · weight + bias."""

    mean: Float[Tensor, "F"]
    std: Float[Tensor, "F"]
    weight: Float[Tensor, "F classes"]
    bias: Float[Tensor, "classes"]

    def accuracy(self, features: Float[Tensor, "m F"], labels: Int[Tensor, "m"]) -> float:
        """Share of images classified right, in [0, 1]."""
        scores = (features - self.mean) / self.std @ self.weight + self.bias
        return float((scores.argmax(1) == labels).double().mean())


Scale: TypeAlias = tuple[Tensor, Tensor]
"""Mean and standard deviation of every feature."""


def scale_of(features: Float[Tensor, "n F"]) -> Scale:
    """Mean and standard deviation of the features; constant features become zero and not NaN."""
    return features.mean(0), features.std(0, correction=0).clamp_min(1e-6)


def fit_ridge(
    features: Float[Tensor, "n F"], labels: Int[Tensor, "n"], l2: float, *, scale: Scale | None = None
) -> LinearProbe:
    """Ridge regression on one-hot labels in closed form, a fast classifier to compare layers.

    Args:
        features: one row per image.
        labels: classes 0, 1, ...
        l2: strength of the regularisation, relative to the unit variance of standardised features.
        scale: for standardisation; None for that of `features`.
    """
    mean, std = scale or scale_of(features)
    x = (features - mean) / std
    target = F.one_hot(labels, int(labels.max()) + 1).to(x.dtype)
    bias = target.mean(0)
    if len(x) < x.shape[1]:  # the same solution by a smaller system of equations
        gram = x @ x.t() / len(x) + l2 * torch.eye(len(x), dtype=x.dtype)
        return LinearProbe(mean, std, x.t() @ torch.linalg.solve(gram, target - bias) / len(x), bias)
    gram = x.t() @ x / len(x) + l2 * torch.eye(x.shape[1], dtype=x.dtype)
    return LinearProbe(mean, std, torch.linalg.solve(gram, x.t() @ (target - bias) / len(x)), bias)


def fit_linear(
    features: Float[Tensor, "n F"],
    labels: Int[Tensor, "n"],
    l2: float,
    *,
    scale: Scale | None = None,
    start: LinearProbe | None = None,
    max_iter: int = 100,
) -> LinearProbe:
    """Minimise mean cross-entropy + l2/2·‖weight‖² on standardised features.

    The problem is preconditioned: it is solved for Lᵀ·weight, where L·Lᵀ is the curvature at equal probabilities of
    all classes. Features are strongly correlated, and this takes some fifty iterations instead of hundreds.

    Args:
        features: one row per image.
        labels: classes 0, 1, ...
        l2: strength of the regularisation; the bias is not regularised.
        scale: for standardisation; None for that of `features`.
        start: the initial weights, as of a fit with stronger regularisation; None for zero.
        max_iter: the most L-BFGS iterations.
    """
    mean, std = scale or scale_of(features)
    x = (features - mean) / std
    num_classes = int(labels.max()) + 1
    spread = (1 - 1 / num_classes) / num_classes
    lower = torch.linalg.cholesky(x.t() @ x * (spread / len(x)) + l2 * torch.eye(x.shape[1], dtype=x.dtype))
    scaled = torch.zeros(x.shape[1], num_classes) if start is None else lower.t() @ start.weight
    bias = torch.zeros(num_classes) if start is None else start.bias.clone()
    for parameter in (scaled, bias):
        parameter.requires_grad_()
    optimizer = torch.optim.LBFGS([scaled, bias], max_iter=max_iter, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        weight = torch.linalg.solve_triangular(lower.t(), scaled, upper=True)
        loss = F.cross_entropy(torch.addmm(bias, x, weight), labels) + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    weight = torch.linalg.solve_triangular(lower.t(), scaled.detach(), upper=True)
    return LinearProbe(mean, std, weight, bias.detach())
