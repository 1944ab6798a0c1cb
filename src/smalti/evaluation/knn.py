"""k-nearest-neighbour classification on frozen features."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_TEMPERATURE = 0.07


def knn_accuracy(
    train: Float[Tensor, "n F"],
    train_labels: Int[Tensor, "n"],
    test: Float[Tensor, "m F"],
    test_labels: Int[Tensor, "m"],
    k: int = 20,
) -> float:
    """Share of test images whose class is voted for by their `k` most similar training images.

    Similarity is the cosine of standardised features; a vote weighs exp(similarity / 0.07).

    Reference: Wu et al. 2018 (instance discrimination), as used by DINO.
    """
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    bank, queries = (F.normalize((x - mean) / std, dim=1) for x in (train, test))
    num_classes = int(train_labels.max()) + 1
    hits = 0
    for start in range(0, len(queries), 1000):
        similarity, nearest = (queries[start : start + 1000] @ bank.t()).topk(min(k, len(bank)), dim=1)
        votes = F.one_hot(train_labels[nearest], num_classes) * (similarity / _TEMPERATURE).exp()[..., None]
        hits += int((votes.sum(1).argmax(1) == test_labels[start : start + 1000]).sum())
    return hits / len(test)
