"""What the discrete VAEs have in common, ours (dvae.py) and DALL-E's (dalle.py): scores over a codebook in the middle.

encoder -> features -> `to_logits` -> weights of the codes -> `codebook` -> decoder
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.functional.gumbel_relaxation import RelaxedTokens, relaxed_tokens
from smalti.tokenizers.trunk import float32

_POSITIONS = 256
"""Positions whose scores `best_codes` holds at a time."""
_CUT = 0.1
"""How much faster the score of a code that takes a part of another's cell rises there, in shares of the other's."""


class DiscreteTokenizer(Protocol):
    """A tokenizer that is trained as a discrete VAE. Both convolutions are 1x1."""

    @property
    def to_logits(self) -> nn.Conv2d: ...
    @property
    def codebook(self) -> nn.Conv2d: ...

    def features(self, images: Tensor) -> Float[Tensor, "B D h w"]:
        """What the encoder makes of uint8 or float images in [0, 1]."""
        ...

    def pixels(self, codes: Float[Tensor, "B d h w"]) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
        """Mean and log-scale of the logit-Laplace distribution of every sub-pixel, given vectors of the codebook."""
        ...


def relax(
    tokenizer: DiscreteTokenizer, images: Tensor, key: Int[Tensor, "B"], temperature: float, *, hard: bool = False
) -> tuple[RelaxedTokens, Tensor, Tensor]:
    """Write images in relaxed tokens and read them back.

    Returns:
        The tokens; mean and log-scale of every sub-pixel, B C H W each.
    """
    features, to_logits, codebook = tokenizer.features(images), tokenizer.to_logits, tokenizer.codebook
    dtype = torch.get_autocast_dtype(features.device.type) if torch.is_autocast_enabled(features.device.type) else None
    assert to_logits.bias is not None
    with float32(features):
        tokens = relaxed_tokens(
            features.float().flatten(2).transpose(1, 2),
            to_logits.weight.flatten(1),
            to_logits.bias,
            codebook.weight.flatten(1).t().to(dtype).contiguous(),
            key,
            temperature,
            hard=hard,
        )
    codes = tokens.codes if codebook.bias is None else tokens.codes + codebook.bias.to(dtype)
    return tokens, *tokenizer.pixels(codes.transpose(1, 2).unflatten(2, features.shape[2:]))


def best_codes(features: Float[Tensor, "B D h w"], to_logits: nn.Conv2d) -> Int[Tensor, "B h w"]:
    """The code of the greatest score at every position; all scores at once would be the largest tensor by far."""
    rows, weight = features.permute(0, 2, 3, 1), to_logits.weight[:, :, 0, 0]
    with float32(features):
        parts = rows.float().flatten(0, 2).split(_POSITIONS)
        return torch.cat([F.linear(part, weight, to_logits.bias).argmax(1) for part in parts]).view(rows.shape[:3])


@torch.no_grad()
def split(
    tokenizer: DiscreteTokenizer, dead: Int[Tensor, "k"], parents: Int[Tensor, "k"], scores: Float[Tensor, "k"]
) -> None:
    """Give each dead code a part of what a parent stands for: the positions that the parent fits better than usual.

    There the score of the dead code is above the parent's, elsewhere below; both paint the same, until they are
    trained apart.

    Args:
        scores: mean logit of each parent where it is the most likely code.
    """
    weight, bias = tokenizer.to_logits.weight, tokenizer.to_logits.bias
    assert bias is not None
    weight[dead] = (1 + _CUT) * weight[parents]
    bias[dead] = (1 + _CUT) * bias[parents] - _CUT * scores
    tokenizer.codebook.weight[:, dead] = tokenizer.codebook.weight[:, parents]
