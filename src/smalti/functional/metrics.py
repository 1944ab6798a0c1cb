"""Numbers that say how well things go. Entropies are in nats."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2


def psnr(images: Float[Tensor, "B C H W"], reconstructions: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
    """Peak signal-to-noise ratio of each image in dB, for pixels in [0, 1]; at most 100 dB."""
    mse = (images - reconstructions).square().mean(dim=(1, 2, 3))
    ratio: Tensor = -10 * torch.log10(mse.clamp_min(1e-10))
    return ratio


def ssim(images: Float[Tensor, "B C H W"], reconstructions: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
    """Structural similarity of each image, for pixels in [0, 1]; 1 where the two are equal, at least -1.

    (2 μx μy + C1)(2 σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2)) under a Gaussian window of 11 x 11 pixels with
    σ = 1.5, wherever it lies inside the image; the mean over positions and channels. C1 = 0.01², C2 = 0.03².

    Reference: Wang et al. 2004, eq. 13.
    Differs: where a side is shorter than 11 pixels, the window is as large as an odd number of pixels allows.
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
    """A Gaussian window at every place along a side, as rows that add up to 1; a product with it is a convolution."""
    place = torch.arange(length - size + 1, device=like.device)[:, None]
    offset = torch.arange(length, device=like.device) - place - size // 2
    row = torch.exp(-0.5 * (offset / _SSIM_SIGMA) ** 2) * (offset.abs() <= size // 2)
    return row / row.sum(1, keepdim=True)


def entropy(counts: Float[Tensor, "V"] | Int[Tensor, "V"]) -> Float[Tensor, ""]:
    """Entropy of the distribution that `counts` stand for, in nats. Of token counts: the unigram entropy.

    It is the loss of the best predictor that ignores the image, so a masked-image-modeling loss means something only
    below it.
    """
    p = counts.double() / counts.sum()
    nats: Tensor = -torch.special.xlogy(p, p).sum()
    return nats


def unigram_nats(counts: Int[Tensor, "V"]) -> Float[Tensor, "V"]:
    """What each token costs whoever knows the counts of tokens alone: -ln((n_z + 1) / (Σn + V)), in nats.

    The added one leaves a price for tokens that did not occur. On the counted tokens themselves the mean price lies
    between their entropy and ln V.
    """
    seen = counts.double()
    return (seen.sum() + len(seen)).log() - (seen + 1).log()


class CodebookUse(NamedTuple):
    """How a codebook is used.

    Attributes:
        used: share of the codes that occur, in [0, 1].
        perplexity: exp of the unigram entropy; the number of equally frequent codes with the same entropy.
        entropy: unigram entropy in nats.
        top_share: share of the positions that the most frequent code takes.
        tokens: number of positions counted.
    """

    used: float
    perplexity: float
    entropy: float
    top_share: float
    tokens: int


def codebook_use(ids: Int[Tensor, "B N"], vocab_size: int, keep: Bool[Tensor, "B N"] | None = None) -> CodebookUse:
    """Statistics of visual tokens, over the positions in `keep` (default: all)."""
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


def hits(logits: Float[Tensor, "*B V"], target: Int[Tensor, "*B"], most: int) -> Bool[Tensor, "*B k"]:
    """Whether the best guess is the right one, whether the second best is, and so on: k = min(`most`, V) of them.

    For few guesses `topk` costs about what `argmax` does.
    """
    return logits.topk(min(most, logits.shape[-1])).indices == target[..., None]


def average_precision(scores: Float[Tensor, "n"], relevant: Bool[Tensor, "n"]) -> Float[Tensor, ""]:
    """Mean over the relevant images of the precision among those that score at least as high; NaN where none is."""
    found = scores[relevant]
    above = [len(among) - torch.searchsorted(among.sort().values, found) for among in (found, scores)]
    precision: Tensor = (above[0].double() / above[1]).mean()
    return precision


def codes_seen(ids: Int[Tensor, "*B"], vocab_size: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """How many codes occur in `ids`, and how many could: V, or the number of positions where that is less.

    Their ratio is a live meter of dead codes: one batch, no state, no wait for the device.
    """
    seen = torch.zeros(vocab_size, device=ids.device).scatter_(0, ids.flatten(), 1.0).sum()
    return seen, torch.full_like(seen, min(vocab_size, ids.numel()))
