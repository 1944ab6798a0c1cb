"""Principal components, the same for the same rows: signs are fixed."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class PCA(NamedTuple):
    """Rows in the coordinates of their principal components, the one of the greatest variance first.

    Attributes:
        scores: the coordinates of each row, of mean 0.
        shares: the share of all variance that lies along each component, in [0, 1].
    """

    scores: Float[Tensor, "n k"]
    shares: Float[Tensor, "k"]


def pca(rows: Float[Tensor, "n D"], k: int) -> PCA:
    """The first `k` principal components of rows, computed in float64.

    A component has no sign of its own: it gets the one in which its largest loading is positive (of equal ones the
    first). Where rows vary along fewer than `k` directions, the other scores are 0.
    """
    centred = rows.double() - rows.double().mean(0)
    variance, directions = torch.linalg.eigh(centred.T @ centred / len(rows))
    chosen = directions.flip(1)[:, :k]
    largest = chosen.gather(0, chosen.abs().argmax(0, keepdim=True))
    chosen = torch.where(largest < 0, -chosen, chosen)
    found, total = variance.flip(0)[:k].clamp_min(0), variance.clamp_min(0).sum()
    flat = found <= total * torch.finfo(torch.float64).eps * rows.shape[1]
    scores = torch.where(flat, 0.0, centred @ chosen)
    return PCA(scores.float(), torch.where(flat, 0.0, found / total.clamp_min(1e-300)).float())
