"""Numbers that say how well things go. Entropies are in nats."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def psnr(images: Float[Tensor, "B C H W"], reconstructions: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
    """Peak signal-to-noise ratio of each image in dB, for pixels in [0, 1]; at most 100 dB."""
    mse = (images - reconstructions).square().mean(dim=(1, 2, 3))
    ratio: Tensor = -10 * torch.log10(mse.clamp_min(1e-10))
    return ratio


def entropy(counts: Float[Tensor, "V"] | Int[Tensor, "V"]) -> Float[Tensor, ""]:
    """Entropy of the distribution that `counts` stand for, in nats. Of token counts: the unigram entropy.

    It is the loss of the best predictor that ignores the image, so a masked-image-modeling loss means something only
    below it.
    """
    p = counts.double() / counts.sum()
    nats: Tensor = -torch.special.xlogy(p, p).sum()
    return nats


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


def correct(logits: Float[Tensor, "*B V"], target: Int[Tensor, "*B"]) -> Bool[Tensor, "*B"]:
    """Whether the most likely class is the right one."""
    return logits.argmax(-1) == target
