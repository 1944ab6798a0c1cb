"""Metrics of reconstructions, codebooks, predictions and segmentations, and the copy baseline. Entropies are in nats.

Void pixels, which have no class, are ignored everywhere.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
VOID = 255
"""The value of pixels without a class in a label map."""


def psnr(images: Float[Tensor, "B C H W"], reconstructions: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
    """Peak signal-to-noise ratio of each image in dB, for pixels in [0, 1]; at most 100 dB."""
    mse = (images - reconstructions).square().mean(dim=(1, 2, 3))
    ratio: Tensor = -10 * torch.log10(mse.clamp_min(1e-10))
    return ratio


def ssim(images: Float[Tensor, "B C H W"], reconstructions: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
    """Structural similarity of each image, for pixels in [0, 1]; 1 where the two are equal, at least -1.

    (2 μx μy + C1)(2 σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2)) under a Gaussian window of 11 x 11 pixels with
    σ = 1.5, averaged over all windows inside the image and over channels. C1 = 0.01², C2 = 0.03².

    Reference: Wang et al. 2004, eq. 13.
    Differs: where a side is shorter than 11 pixels, the window has the largest odd number of pixels that fits.
    """
    size = min(_SSIM_WINDOW, *images.shape[-2:])
    size -= 1 - size % 2
    down, right = (_windows(length, size, images) for length in images.shape[-2:])
    x, y = images, reconstructions
    mx, my, xx, yy, xy = (down @ moment @ right.t() for moment in (x, y, x * x, y * y, x * y))
    luminance = (2 * mx * my + _SSIM_C1) / (mx * mx + my * my + _SSIM_C1)
    structure = (2 * (xy - mx * my) + _SSIM_C2) / (xx - mx * mx + yy - my * my + _SSIM_C2)
    similarity: Tensor = (luminance * structure).mean((1, 2, 3))
    return similarity


def _windows(length: int, size: int, like: Tensor) -> Float[Tensor, "places length"]:
    """A matrix whose product with a side of the image is a Gaussian filter: a window per row, each with sum 1."""
    place = torch.arange(length - size + 1, device=like.device)[:, None]
    offset = torch.arange(length, device=like.device) - place - size // 2
    row = torch.exp(-0.5 * (offset / _SSIM_SIGMA) ** 2) * (offset.abs() <= size // 2)
    return row / row.sum(1, keepdim=True)


def entropy(counts: Float[Tensor, "V"] | Int[Tensor, "V"]) -> Float[Tensor, ""]:
    """Entropy of the distribution counts / Σ counts, in nats. Of token counts it is the unigram entropy.

    This is the loss of the best predictor that ignores the image: masked image modeling has learned something only
    where its loss is lower.
    """
    p = counts.double() / counts.sum()
    nats: Tensor = -torch.special.xlogy(p, p).sum()
    return nats.clamp_min(0) + 0.0  # of a single token, -0


def mutual_information(x: Int[Tensor, "n"], y: Int[Tensor, "n"]) -> float:
    """H(x) + H(y) - H(x, y) of the frequencies of two numbers and of their pairs, in bits.

    It is the plug-in estimate: of independent numbers it is above 0 by chance, about (pairs - values of x - values of y
    + 1) / 2n nats, counting those that occur (Miller 1955).

    Args:
        x, y: numbers of 0 or more.
    """
    pairs = x * (int(y.max()) + 1) + y
    nats = [float(entropy(values.unique(return_counts=True)[1])) for values in (x, y, pairs)]
    return max(0.0, nats[0] + nats[1] - nats[2]) / math.log(2)


def unigram_nats(counts: Int[Tensor, "V"]) -> Float[Tensor, "V"]:
    """Code length of each token under the unigram distribution with add-one smoothing: -ln((n_z + 1) / (Σn + V)).

    The smoothing keeps it finite for tokens with count 0. Its mean over the counted tokens lies between their entropy
    and ln V.

    Returns:
        Nats per token.
    """
    seen = counts.double()
    return (seen.sum() + len(seen)).log() - (seen + 1).log()


class CodebookUse(NamedTuple):
    """Statistics of how a codebook is used.

    Attributes:
        used: share of the codes that occur, in [0, 1].
        perplexity: exp of the unigram entropy; the number of equally frequent codes with the same entropy.
        entropy: unigram entropy in nats.
        top_share: share of the positions with the most frequent code, in [0, 1].
        tokens: number of positions counted.
    """

    used: float
    perplexity: float
    entropy: float
    top_share: float
    tokens: int


def codebook_use(ids: Int[Tensor, "B N"], vocab_size: int, keep: Bool[Tensor, "B N"] | None = None) -> CodebookUse:
    """Statistics of visual tokens in [0, V), over the positions where `keep` is True (default: all)."""
    counted = ids.flatten() if keep is None else ids[keep]
    counts = torch.bincount(counted, minlength=vocab_size)
    total = int(counts.sum())
    if total == 0:
        return CodebookUse(used=0.0, perplexity=1.0, entropy=0.0, top_share=1.0, tokens=0)
    nats = float(entropy(counts))
    return CodebookUse(
        used=float((counts > 0).double().mean()),
        perplexity=float(torch.tensor(nats, dtype=torch.float64).exp()),
        entropy=nats,
        top_share=float(counts.max()) / total,
        tokens=total,
    )


def topk_correct(logits: Float[Tensor, "*B V"], target: Int[Tensor, "*B"], most: int) -> Bool[Tensor, "*B k"]:
    """Whether the target is the prediction of rank 1, 2, ..., k, where k = min(`most`, V).

    The mean of the first column is the top-1 accuracy; top-k accuracy sums the first k columns.
    """
    return logits.topk(min(most, logits.shape[-1])).indices == target[..., None]


def average_precision(scores: Float[Tensor, "n"], relevant: Bool[Tensor, "n"]) -> Float[Tensor, ""]:
    """Average precision: the mean over relevant images of the precision at their score; NaN where none is relevant."""
    found = scores[relevant]
    above = [len(among) - torch.searchsorted(among.sort().values, found) for among in (found, scores)]
    precision: Tensor = (above[0].double() / above[1]).mean()
    return precision


def codes_seen(ids: Int[Tensor, "*B"], vocab_size: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The number of codes that occur in `ids`, and the number that could: min(V, number of positions).

    Their ratio shows dead codes during training, from one batch and without waiting for the device.
    """
    seen = torch.zeros(vocab_size, device=ids.device).scatter_(0, ids.flatten(), 1.0).sum()
    return seen, torch.full_like(seen, min(vocab_size, ids.numel()))


def nearest_visible(mask: Bool[Tensor, "B N"], index: Int[Tensor, "B K"], grid: tuple[int, int]) -> Int[Tensor, "B K"]:
    """The visible patch nearest to each of the patches in `index` by Manhattan distance, the first of several.

    Args:
        mask: True where masked; every image has at least one visible patch.
        index: flat positions in [0, N).
        grid: rows and columns.

    Returns:
        Flat positions of visible patches, in [0, N).
    """
    number = torch.arange(mask.shape[1], device=mask.device)
    row, column = number // grid[1], number % grid[1]
    steps = (row[:, None] - row).abs() + (column[:, None] - column).abs()
    order = steps * len(number) + number  # by distance, then by number
    return order[index].masked_fill(mask[:, None], order.numel() * 2).min(-1).values % len(number)


class CopyBaseline(NamedTuple):
    """Metrics of the copy baseline.

    Attributes:
        nats: cross-entropy of λ·1[z = neighbour] + (1-λ)·unigram(z), in nats per masked patch.
        weight: the λ in [0, 1] that minimises it.
        accuracy: share of masked patches whose token is the neighbour's, in [0, 1].
    """

    nats: float
    weight: float
    accuracy: float


def copy_baseline(hits: Float[Tensor, "V"], misses: Float[Tensor, "V"]) -> CopyBaseline:
    """The mixture of the neighbour's token and the unigram distribution, both fitted to these same patches.

    -ln p(z) is -ln(λ + (1-λ) u(z)) where the neighbour has the token z, else -ln((1-λ) u(z)), where u(z) is the share
    of z among the masked patches. The mean is convex in λ and minimised by bisection of its derivative. At λ = 0 it is
    the unigram entropy, which it therefore never exceeds.

    Args:
        hits: number of masked patches with each token whose neighbour has the same token.
        misses: number of masked patches with each token whose neighbour has another one.
    """
    hits, misses = hits.double(), misses.double()
    total = float((hits + misses).sum())
    if not hits.any():
        return CopyBaseline(float(entropy(misses)), 0.0, 0.0)
    share = (hits + misses) / total
    low, high = 0.0, 1.0
    for _ in range(60):
        weight = (low + high) / 2
        gain = (hits * (1 - share) / (weight + (1 - weight) * share)).sum() - misses.sum() / (1 - weight)
        low, high = (weight, high) if gain > 0 else (low, weight)
    right = torch.special.xlogy(hits, low + (1 - low) * share).sum()
    wrong = torch.special.xlogy(misses, (1 - low) * share).sum()
    return CopyBaseline(-float(right + wrong) / total, low, float(hits.sum()) / total)


def pixel_confusion(
    predicted: Integer[Tensor, "*B H W"], label_map: Integer[Tensor, "*B H W"], num_classes: int
) -> Int[Tensor, "classes classes"]:
    """Confusion matrix: the number of pixels of each true class (row) with each predicted class (column)."""
    known = label_map != VOID
    pairs = label_map[known].long() * num_classes + predicted[known].long()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_ious(table: Int[Tensor, "classes classes"]) -> Float[Tensor, "classes"]:
    """Intersection over union of each class, in [0, 1]; NaN for a class that neither occurs nor is predicted.

    Reference: Everingham et al. 2010 (PASCAL VOC), §4.2.3: TP / (TP + FN + FP).
    """
    right = table.diagonal().double()
    return right / (table.sum(0) + table.sum(1) - right)


def mean_iou(table: Int[Tensor, "classes classes"]) -> float:
    """Mean IoU over the classes that occur or are predicted, from the confusion matrix of all images together."""
    return float(class_ious(table).nanmean())


def pixel_accuracy(table: Int[Tensor, "classes classes"]) -> float:
    """The share of pixels with the right class, in [0, 1]."""
    return float(table.diagonal().sum() / table.sum())
