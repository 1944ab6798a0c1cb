"""k-nearest-neighbour classification on frozen features."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_TEMPERATURE = 0.07
_CHUNK = 1000
"""Images per batch of similarities."""


def knn_accuracy(
    train: Float[Tensor, "n F"],
    train_labels: Int[Tensor, "n"],
    test: Float[Tensor, "m F"],
    test_labels: Int[Tensor, "m"],
    k: int = 20,
) -> float:
    """Accuracy of classifying test images by a vote of their `k` most similar training images, in [0, 1].

    Similarity is the cosine of standardised features; the weight of a vote is exp(similarity / 0.07).

    Reference: Wu et al. 2018 (instance discrimination), as used by DINO.
    """
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    bank, queries = (F.normalize((x - mean) / std, dim=1) for x in (train, test))
    hits = 0
    for start in range(0, len(queries), _CHUNK):
        voted = _vote(queries[start : start + _CHUNK] @ bank.t(), train_labels, k)
        hits += int((voted == test_labels[start : start + _CHUNK]).sum())
    return hits / len(test)


def leave_one_out_accuracy(features: Float[Tensor, "n F"], labels: Int[Tensor, "n"], k: int = 20) -> float:
    """k-NN accuracy where each image is classified by all others, so no separate test images are needed."""
    bank = F.normalize((features - features.mean(0)) / features.std(0).clamp_min(1e-6), dim=1)
    hits = 0
    for start in range(0, len(bank), _CHUNK):
        similarity = bank[start : start + _CHUNK] @ bank.t()
        similarity.diagonal(start).fill_(-torch.inf)
        hits += int((_vote(similarity, labels, k) == labels[start : start + _CHUNK]).sum())
    return hits / len(bank)


def _vote(similarity: Float[Tensor, "m n"], labels: Int[Tensor, "n"], k: int) -> Int[Tensor, "m"]:
    """The class with the most votes of the `k` most similar; a similarity of minus infinity gives no vote."""
    nearest_similarity, nearest = similarity.topk(min(k, len(labels)), dim=1)
    votes = F.one_hot(labels[nearest], int(labels.max()) + 1) * (nearest_similarity / _TEMPERATURE).exp()[..., None]
    return votes.sum(1).argmax(1)
